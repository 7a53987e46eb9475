"""Two processes train one network; one dies by SIGKILL; the weights are those of the undisturbed run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from dropgen.manifest import read_json
from dropgen.platform.training.checkpoint import load_checkpoint
from tests_support.checkpoints import digest_of

REPOSITORY = Path(__file__).resolve().parents[2]
log = logging.getLogger("killed rank")  # `python -m pytest -m nightly --log-cli-level=INFO` shows what happens when

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests_support.tiny import tiny_bench
from dropgen.platform.train import train_trial, trials_of
training = {{"workers": 2, "steps": 40, "validate_every": 10, "checkpoint_every": 2}}
bench = tiny_bench(Path({root!r}), name={name!r}, training=training)
result = train_trial(bench, trials_of(bench.experiment)[0], lambda now: print("step", now.step, flush=True))
"""


def start(root: Path, name: str) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(REPOSITORY / "tests"), root=str(root), name=name)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for other in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(other.cmdline()):
                found.append(other)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_a_killed_rank_changes_nothing_about_the_result(tmp_path: Path) -> None:
    log.info("two ranks train 40 steps undisturbed")
    assert start(tmp_path, "undisturbed").wait(timeout=180) == 0
    log.info("the same again, with a checkpoint every second step")
    process = start(tmp_path, "disturbed")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            log.info("reported: %s", line.strip())
        if line.startswith("step") and int(line.split()[1]) >= 10:
            break
    victims = ranks_of(process)
    assert len(victims) == 2
    victims[-1].kill()
    log.info("the ranks are processes %s; SIGKILL to %d", [victim.pid for victim in victims], victims[-1].pid)
    began = time.monotonic()
    steps = []
    for line in process.stdout:
        if line.startswith("step"):
            steps.append(int(line.split()[1]))
            log.info("reported: %s", line.strip())
    assert process.wait(timeout=240) == 0, f"after {time.monotonic() - began:.0f} s"
    assert steps[-1] == 40

    folders = [next((tmp_path / name / "trials").iterdir()) for name in ("undisturbed", "disturbed")]
    digests = [digest_of(folder / "last.ckpt") for folder in folders]
    log.info("weights, optimizer and scheduler, undisturbed: %s", digests[0])
    log.info("weights, optimizer and scheduler, disturbed:   %s", digests[1])
    assert digests[0] == digests[1]
    bundles = [(folder / "bundle/weights.safetensors").read_bytes() for folder in folders]
    assert bundles[0] == bundles[1]
    curves = [read_json(folder / "result.json")["curve"]["validation"] for folder in folders]
    assert curves[0] == curves[1]
    state = load_checkpoint(folders[0] / "last.ckpt")
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["network"].values())
