from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dropgen.serving.jobs import LOCK, MAX_ATTEMPTS, RECORD, VOLUME, CancelledError, Jobs, UnknownJobError


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs", keep_seconds=100)


def accept(jobs: Jobs, key: str | None = None, who: str = "anna") -> str:
    with jobs.draft() as draft:
        (draft / VOLUME).write_bytes(b"voxels")
        return str(jobs.accept(draft, who, key, {})["id"])


def test_an_accepted_job_is_found_by_another_process_and_a_draft_is_not(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), jobs.draft():
        raise RuntimeError
    identity = accept(jobs)
    again = Jobs(tmp_path / "jobs", 100)
    assert again.read(identity, "anna")["state"] == "accepted"
    with again.claim() as folder:
        assert folder is not None
        assert folder.name == identity
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [identity]


def test_a_request_that_is_sent_again_with_its_key_is_one_job(jobs: Jobs) -> None:
    first = accept(jobs, "my-scan-0001")
    assert accept(jobs, "my-scan-0001") == first
    assert accept(jobs, "my-scan-0001", who="bert") != first
    assert jobs.waiting() == 2


def test_a_job_is_its_owners_and_an_id_is_no_path(jobs: Jobs) -> None:
    identity = accept(jobs)
    for wrong, who in ((identity, "bert"), ("../jobs/" + identity, "anna"), ("..", "anna"), (identity + "\0", "anna")):
        for ask in (jobs.read, jobs.mask, jobs.cancel):
            with pytest.raises(UnknownJobError):
                ask(wrong, who)


def test_two_workers_never_hold_one_job(jobs: Jobs) -> None:
    accept(jobs)
    accept(jobs)
    with jobs.claim() as first, jobs.claim() as second, jobs.claim() as third:
        assert first is not None
        assert second is not None
        assert first != second
        assert third is None


def hold(folder: Path) -> None:
    with Jobs(folder, 100).claim():
        (folder / "held").touch()
        time.sleep(60)


def test_a_killed_workers_job_is_taken_up_and_a_deadly_one_given_up(jobs: Jobs, tmp_path: Path) -> None:
    identity = accept(jobs)
    for _ in range(MAX_ATTEMPTS):
        process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "jobs",))
        process.start()
        while not (tmp_path / "jobs" / "held").exists():
            time.sleep(0.01)
        with jobs.claim() as folder:
            assert folder is None
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (tmp_path / "jobs" / "held").unlink()
    with jobs.claim() as folder:
        assert folder is None
    assert jobs.read(identity, "anna")["state"] == "failed"
    assert "died 3 times" in jobs.read(identity, "anna")["error"]


def test_cancelling_ends_a_waiting_job_at_once_and_a_running_one_when_it_looks_up(jobs: Jobs, tmp_path: Path) -> None:
    waiting = accept(jobs)
    assert jobs.cancel(waiting, "anna")["state"] == "cancelled"
    assert not (tmp_path / "jobs" / waiting / VOLUME).exists()
    running = accept(jobs)
    with jobs.claim() as folder:
        assert folder is not None
        assert jobs.cancel(running, "anna")["state"] == "running"
        with pytest.raises(CancelledError):
            jobs.require_wanted(folder)
    with jobs.claim() as folder:
        assert folder is None
    assert jobs.read(running, "anna")["state"] == "cancelled"


def test_finished_jobs_expire_and_unfinished_ones_do_not(jobs: Jobs, tmp_path: Path) -> None:
    kept = accept(jobs)
    old = accept(jobs)
    jobs.cancel(old, "anna")
    assert jobs.expire(time.time() + 99) == 0
    assert jobs.expire(time.time() + 101) == 1
    with pytest.raises(UnknownJobError):
        jobs.read(old, "anna")
    assert sorted(path.name for path in (tmp_path / "jobs" / kept).iterdir()) == sorted([RECORD, VOLUME])
    assert not (tmp_path / "jobs" / kept / LOCK).exists()
