"""Workers keep several cases in hand: side by side, blamed one by one, stopped without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch

from dropgen.config import Component
from dropgen.errors import WeightsError
from dropgen.features import crew
from dropgen.features.cluster import connect
from dropgen.features.crew import efforts, extractor_busy, run_crew
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import write_mask, write_volume
from dropgen.features.worker import Outcome, Recipe, Work, Worker

if TYPE_CHECKING:
    from conftest import StudyFolder

REPOSITORY = Path(__file__).resolve().parents[2]
MIND = Component.of("mind")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(cpus=2):
        yield


@pytest.fixture
def assignment(tiny: StudyFolder, tmp_path: Path) -> tuple[list[Work], Recipe, FeatureStore]:
    """The work of a three-case study, and an empty store for it."""
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    works = missing_work(study, StudyIndex.of(study, Mind(), "float16"), store)
    return works, Recipe(store, study, MIND, "float16", "commit"), store


class Watched(Mind):
    """MIND that notes how many threads are in it at once, and holds each until `release` says so."""

    def __init__(self, release: Any) -> None:
        super().__init__()
        self._inside = threading.Semaphore(1)
        self._release = release

    def __call__(self, image_b1xyz: torch.Tensor, stats: torch.Tensor | None = None) -> torch.Tensor:
        assert self._inside.acquire(blocking=False), "two volumes are in the extractor at once"
        try:
            assert self._release(), "no other volume was prepared meanwhile"
            return super().__call__(image_b1xyz, stats)
        finally:
            self._inside.release()


def test_other_cases_are_prepared_while_one_is_in_the_extractor(
    assignment: tuple[list[Work], Recipe, FeatureStore],
) -> None:
    works, recipe, store = assignment

    def all_volumes_are_stored() -> bool:
        deadline = time.monotonic() + 60
        while len(list(store.entries("volumes"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(list(store.entries("volumes"))) == 3

    worker = Worker(recipe)
    worker._extractor = Watched(all_volumes_are_stored)
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(worker.run, works))
    assert [outcome.problem for outcome in outcomes] == [None] * 3
    assert all(store.has(*entry) for work in works for entry in work.keys.entries())
    (effort,) = efforts(outcomes)
    assert effort.volumes == 3
    assert 0 < effort.extracting <= effort.seconds


def test_busy_is_the_extractors_share_of_all_workers_time() -> None:
    outcomes = [
        Outcome(None, "host:1", 10.0, 14.0, 2.0), Outcome(None, "host:1", 11.0, 20.0, 6.0),
        Outcome("case x: broken", "host:2", 3.0, 8.0, 2.5),
    ]  # fmt: skip
    one, two = efforts(outcomes)
    assert (one.volumes, one.seconds, one.extracting, one.busy) == (2, 10.0, 8.0, 0.8)
    assert (two.volumes, two.seconds, two.busy) == (1, 5.0, 0.5)
    assert extractor_busy([one, two]) == 10.5 / 15
    assert extractor_busy(efforts([Outcome(None, "host:1", 0.0, 1.0, 0.0)])) is None
    assert extractor_busy([]) is None


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_case_that_kills_its_worker_is_named_and_costs_no_other(
    assignment: tuple[list[Work], Recipe, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    works, recipe, store = assignment

    class Mortal(Worker):
        def run(self, work: Work) -> Outcome:
            if work.case.id == "two":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(work)

    monkeypatch.setattr(crew, "Worker", Mortal)
    heard: list[str | None] = []
    outcomes, problems = run_crew(works, recipe, 1, 3, heard.append)
    assert len(problems) == 1
    assert problems[0].startswith("case two: its worker died twice")
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert sorted(heard, key=str) == [None, None, problems[0]]
    for work in works:
        assert all(store.has(*entry) == (work.case.id != "two") for entry in work.keys.entries())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_weights_that_a_worker_lacks_end_the_run_in_their_own_words(
    assignment: tuple[list[Work], Recipe, FeatureStore],
) -> None:
    works, recipe, _ = assignment
    missing = Recipe(recipe.store, recipe.study, Component.of("anatomix", weights="/nowhere.pth"), "float16", "commit")
    with pytest.raises(WeightsError, match=r"/nowhere\.pth"):
        run_crew(works, missing, 1, 3)


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_half_entry_and_the_same_command_goes_on(
    tiny: StudyFolder, tmp_path: Path
) -> None:
    shape = (112, 112, 112)  # large enough that features are still being computed when the first volume is written
    for index in range(3):
        write_volume(tiny.image(index), np.random.default_rng(index).random(shape, np.float32), np.eye(4))
        write_mask(tiny.label(index), np.zeros(shape), np.eye(4))
    tiny.write()
    store = FeatureStore(tmp_path / "store")
    (tmp_path / "experiment.yaml").write_text("name: tiny\nstudy: study.yaml\nselection: {rule: target_validation}\n")
    command = [sys.executable, "-m", "dropgen", "precompute", "experiment.yaml", "--root", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    while not any(store.entries("volumes")):
        assert process.poll() is None, "it ended before it was interrupted"
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "dropgen precompute: interrupted; the same command continues where it stopped"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not list(store.folder.glob("*/.*"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "extractor busy" in done.stdout
