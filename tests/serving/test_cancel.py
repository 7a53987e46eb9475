"""A client that goes away takes its job with it: `dropgen segment --url`, terminated, against the real service."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.features.studies.volume import write_volume
from dropgen.serving import client as client_module
from tests_support.live import live, until


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def jobs_of(root: Path) -> list[dict[str, object]]:
    return [json.loads(record.read_text()) for record in (root / "service" / "jobs").glob("[!.]*/job.json")]


@pytest.mark.parametrize(("works", "state"), [(False, "accepted"), (True, "running")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_client_cancels_the_job_that_it_waits_for(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool, state: str, number: signal.Signals
) -> None:
    monkeypatch.setattr(client_module, "JOB_BYTES", 100)
    root, scans = tmp_path / "root", tmp_path / "scans"
    (root / "mlflow").parent.mkdir()
    (root / "mlflow").symlink_to(registry / "mlflow")
    scans.mkdir()
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)  # hundreds of windows
    write_volume(scans / "large.nii", noise, np.diag([1.25, 1.25, 1.25, 1]))

    def interrupt() -> None:
        until(lambda: [job["state"] for job in jobs_of(root)] == [state])
        os.kill(os.getpid(), number)

    with live(root, "blobs@champion", None, works, max_memory=2**33) as url:
        threading.Thread(target=interrupt, daemon=True).start()
        assert main(["segment", str(scans), str(tmp_path / "masks"), "--url", url, "--root", str(tmp_path)]) == 130
        until(lambda: jobs_of(root)[0]["state"] == "cancelled")
    (folder,) = (root / "service" / "jobs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"job.json", "lock", "cancel"}
    audit = root / "service" / "audit.jsonl"
    assert not audit.exists()  # no mask was made
