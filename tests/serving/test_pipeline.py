"""Several scans in hand at once: side by side, bounded, the same masks however many work, and nothing lost."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dropgen import memory
from dropgen.__main__ import main
from dropgen.errors import ServiceError, TooLargeError
from dropgen.features.cluster import connect
from dropgen.features.studies.volume import Volume, write_volume
from dropgen.platform.evaluation.memory import MemoryPlan
from dropgen.platform.segmenter import Segmenter
from dropgen.serving import batch, crew
from dropgen.serving.backend import LocalModel, Recipe, StoppedError
from dropgen.serving.cases import Scan, find_cases
from dropgen.serving.ledger import Outcome
from dropgen.serving.line import Done, Task
from dropgen.serving.models import Model
from dropgen.serving.quality import Segmented
from dropgen.serving.room import Room
from dropgen.serving.threads import effort_of
from tests_support.folders import segment_folder

SECONDS = 60
DEADLY = "case03"


@pytest.fixture
def study(tmp_path: Path, oblique_volume: Callable[[int], Volume]) -> Path:
    folder = tmp_path / "study"
    for seed in range(6):
        volume = oblique_volume(seed)
        write_volume(folder / f"case{seed:02d}.nii.gz", volume.array, volume.affine)
    (folder / "case04.nii.gz").write_bytes(b"no scan")
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "outcomes.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


def test_as_many_scans_as_stated_are_in_hand_and_the_table_keeps_the_order_of_the_input(
    study: Path, tmp_path: Path, model: Model, segmenter: Segmenter
) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def segment(scan: Scan) -> Segmented:
        nonlocal inside, most
        volume = scan.load().channels[0]
        with lock:
            inside += 1
            most = max(most, inside)
        if scan.case in ("case00", "case01", "case02"):
            together.wait(SECONDS)  # all three are in hand at the same time, or this breaks
        if scan.case == "case00":
            until(lambda: (tmp_path / "masks" / "case05.nii.gz").exists())  # the first ends last
        with lock:
            inside -= 1
        return Segmented(volume, Volume(segmenter.predict(volume), volume.affine))

    document = segment_folder(study, tmp_path / "masks", model, segment, in_flight=3)
    assert most == 3
    assert (document["done"], document["failed"]) == (5, 1)
    assert [row["case"] for row in rows(tmp_path / "masks")] == [f"case{number:02d}" for number in range(6)]
    assert [case["case"] for case in document["cases"]] == [f"case{number:02d}" for number in range(6)]


def test_other_scans_are_read_while_one_is_in_the_model_and_never_two_are_in_it(
    study: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalModel(Recipe(bundle))
    read: list[str] = []
    inside = threading.Semaphore(1)
    load, predict = Scan.load, local.segmenter.predict_native

    def noted(scan: Scan) -> object:
        loaded = load(scan)
        read.append(scan.case)
        return loaded

    def watched(prepared: object) -> np.ndarray:
        assert inside.acquire(blocking=False), "two volumes are in the model at once"
        try:
            until(lambda: len(read) >= 3)
            return predict(prepared)  # type: ignore[arg-type]
        finally:
            inside.release()

    monkeypatch.setattr(Scan, "load", noted)
    monkeypatch.setattr(local.segmenter, "predict_native", watched)
    found: dict[str, tuple[float, float] | None] = {}

    def work(scan: Scan) -> None:
        with local.segment(scan) as made:
            found[scan.case] = made.in_model

    scans = [scan for scan in find_cases(study, study / "none").scans if scan.case != "case04"][:3]
    threads = [threading.Thread(target=work, args=(scan,)) for scan in scans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    spans = sorted(span for span in found.values() if span is not None)
    assert len(spans) == 3
    assert all(left <= entered for (_, left), (entered, _) in itertools.pairwise(spans))


def test_busy_is_the_models_share_between_its_first_scan_and_its_last() -> None:
    def done(worker: str, in_model: tuple[float, float] | None) -> Done:
        return Done(Task(Scan("a", "a", ())), Outcome("a", "a", "done"), None, in_model, worker)

    effort = effort_of([done("one", (1, 3)), done("one", (4, 5)), done("two", (7, 9)), done("two", None)])
    assert (effort.scans, effort.seconds, effort.in_model, effort.busy) == (3, 6, 5, 5 / 6)
    assert effort_of([done("one", None)]).busy is None


def test_a_volume_that_does_not_fit_beside_the_others_waits_for_them(segmenter: Segmenter) -> None:
    room = Room(segmenter, lambda: 100)
    plan = MemoryPlan((1, 1, 1), 2, {"reading": 20, "windows": 60})  # two of them take 20 + 60, three 20 + 20 + 60
    large = MemoryPlan((1, 1, 1), 2, {"reading": 41, "windows": 60})
    entered = threading.Event()

    def enter() -> None:
        with room.hold(large):
            entered.set()

    with room.hold(plan), room.hold(plan):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(SECONDS)
    thread.join(SECONDS)
    with pytest.raises(TooLargeError, match="GiB are free"), room.hold(MemoryPlan((1, 1, 1), 2, {"windows": 101})):
        pass
    with room.hold(MemoryPlan((1, 1, 1), 2, {"reading": 101}), exact=False):
        pass


def test_less_memory_means_fewer_volumes_in_hand_and_the_same_masks(
    study: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(study), "--bundle", str(bundle), "--root", str(tmp_path / "runs")]
    assert main([*words[:2], str(tmp_path / "many"), *words[2:]]) == 2
    grid = Volume(np.zeros((23, 17, 19), np.float32), np.diag([1.3, 0.9, 1.7, 1]))
    alone = LocalModel(Recipe(bundle))._plan(grid).peak
    monkeypatch.setattr(memory, "available", lambda: int(1.2 * alone))
    assert main([*words[:2], str(tmp_path / "few"), *words[2:], "--in-flight", "5"]) == 2
    assert contents(tmp_path / "few") == contents(tmp_path / "many") != {}
    assert "5 volumes in flight take up to" in capsys.readouterr().out


def test_an_interrupted_model_waits_for_no_more_than_a_window(study: Path, bundle: Path) -> None:
    stop = threading.Event()
    local = LocalModel(Recipe(bundle), stop=stop)
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        stop.set()

    local.segmenter.network.register_forward_hook(count)
    with pytest.raises(StoppedError), local.segment(find_cases(study, study / "none").scans[0]):
        pass
    assert seen == 1


def test_what_is_done_when_the_service_goes_away_is_on_record(
    study: Path, tmp_path: Path, model: Model, segmenter: Segmenter
) -> None:
    def segment(scan: Scan) -> Segmented:
        if scan.case == "case01":
            until(lambda: (tmp_path / "masks" / "case00.nii.gz").exists())
            raise ServiceError("gone")
        volume = scan.load().channels[0]
        return Segmented(volume, Volume(segmenter.predict(volume), volume.affine))

    with pytest.raises(ServiceError, match="gone"):
        segment_folder(study, tmp_path / "masks", model, segment, in_flight=3)
    told = {row["case"] for row in rows(tmp_path / "masks") if row["outcome"] == "done"}
    assert told == {path.name.removesuffix(".nii.gz") for path in (tmp_path / "masks").glob("*.nii.gz")} >= {"case00"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(cpus=2):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_masks_and_table_are_the_same_from_this_process_one_worker_and_two(
    study: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for workers in ("0", "1", "2"):
        words = ["segment", str(study), str(tmp_path / workers), "--bundle", str(bundle), "--workers", workers]
        assert main([*words, "--json", "--root", str(tmp_path / "runs")]) == 2  # the broken one
        document = json.loads(capsys.readouterr().out)
        assert (document["done"], document["failed"]) == (5, 1)
        assert 0 < document["model_busy"] <= 1
        assert (contents(tmp_path / workers), rows(tmp_path / workers)) == (
            contents(tmp_path / "0"),
            rows(tmp_path / "0"),
        )
    again = ["segment", str(study), str(tmp_path / "1"), "--bundle", str(bundle), "--workers", "2", "--json"]
    assert main([*again, "--root", str(tmp_path / "runs")]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["skipped"], document["failed"]) == (5, 1)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_scan_that_kills_its_worker_twice_is_quarantined_and_no_other_is_lost_or_made_twice(
    study: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deaths = tmp_path / "deaths"

    class Mortal(crew.Worker):
        def run(self, task: Task) -> Done:
            if task.scan.case == DEADLY:
                with deaths.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(task)

    monkeypatch.setattr(crew, "Worker", Mortal)
    words = ["segment", str(study), str(tmp_path / "masks"), "--bundle", str(bundle), "--workers", "1", "--json"]
    assert main([*words, "--root", str(tmp_path / "runs")]) == 2
    document = json.loads(capsys.readouterr().out)
    assert deaths.read_text() == "xx"
    assert {case["case"]: case["outcome"] for case in document["cases"]} == {
        f"case{number:02d}": "failed" if number in (3, 4) else "done" for number in range(6)
    }
    assert "its worker died twice at it" in rows(tmp_path / "masks")[3]["reason"]
    audit = [json.loads(line) for line in (tmp_path / "runs" / "service" / "audit.jsonl").read_text().splitlines()]
    assert len(audit) == len({line["input_sha256"] for line in audit}) == 4
    monkeypatch.undo()
    assert main([*words, "--root", str(tmp_path / "runs")]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["done"], document["skipped"], document["failed"]) == (1, 4, 1)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_damaged_bundle_is_one_sentence_from_a_worker_too(
    study: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in bundle.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: None if path.suffix == ".json" else -1])
    assert main(["segment", str(study), str(tmp_path / "masks"), "--bundle", str(broken), "--workers", "1"]) == 2
    assert "weights.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--in-flight", "0"], "--in-flight 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--workers", "0", "--address", "127.0.0.1:1"], "--workers 0"),
        (["--workers", "2", "--url", "http://127.0.0.1:1"], "--url excludes --workers"),
    ],
)
def test_numbers_of_workers_that_cannot_be_are_refused(
    study: Path, tmp_path: Path, bundle: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--url" in words else ["--bundle", str(bundle)]
    assert main(["segment", str(study), str(tmp_path / "masks"), *model, *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("scans", "own"), [(19, False), (20, True)])
def test_a_study_of_twenty_scans_has_a_process_of_its_own_unless_told_otherwise(scans: int, own: bool) -> None:
    assert (batch._workers(Namespace(workers=None, address=None), scans) > 0) == own
    assert batch._workers(Namespace(workers=0, address=None), scans) == 0
