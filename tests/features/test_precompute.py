"""A study goes into the store once: resumed after a kill, never wrong, never twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from dropgen.config import Experiment, validate
from dropgen.errors import ResourceError, StudyError
from dropgen.features.cluster import connect
from dropgen.features.extractors import extract
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import precompute
from dropgen.features.store import KINDS, FeatureStore
from dropgen.features.store.entry import COMMIT
from dropgen.features.studies.prepare import prepare, prepare_label
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_mask, read_volume, write_mask, write_volume
from tests_support.disks import small_disk
from tests_support.stores import leftovers

if TYPE_CHECKING:
    from conftest import StudyFolder

REPOSITORY = Path(__file__).resolve().parents[2]
WHOLE = (slice(None),) * 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the tests that call `precompute` in this process."""
    with connect(cpus=2):
        yield


def experiment(study: Path, **features: Any) -> Experiment:
    values = {"name": "tiny", "study": str(study), "features": features, "selection": {"rule": "target_validation"}}
    return validate(Experiment, values, "tiny")


def everywhere(count: int) -> dict[str, int]:
    return dict.fromkeys(KINDS, count)


def records(store: FeatureStore) -> dict[tuple[str, str], tuple[int, int]]:
    """Inode and time of every commit record: both change when an entry is written again."""
    found = {}
    for kind in KINDS:
        for key in store.entries(kind):
            state = (store.path(kind, key) / COMMIT).stat()
            found[kind, key] = (state.st_ino, state.st_mtime_ns)
    return found


def assert_stored(study: Study, case_id: str, store: FeatureStore) -> None:
    """The store holds what preparing and extracting the case here and now gives."""
    case = next(case for case in study.cases if case.id == case_id)
    keys = StudyIndex.of(study, Mind(), "float16").keys[case_id]
    expected = prepare([read_volume(case.image)], study.preparation, case.modality)
    features, stats = extract(Mind(), expected.unit)
    assert np.array_equal(store.volume(keys.volume).unit, expected.unit)
    assert np.array_equal(store.label(keys.label), prepare_label(read_mask(case.label), expected.grid))
    stored = store.features(keys.features)
    assert np.array_equal(stored.read(range(12), WHOLE), features.astype(np.float16))
    assert np.array_equal(stored.stats, stats)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_is_stored_is_what_is_computed_here_and_only_what_is_missing_is_computed(
    tiny: StudyFolder, tmp_path: Path
) -> None:
    study = load_study(tiny.write(), tmp_path)
    plan, store = experiment(tmp_path / "study.yaml"), FeatureStore(tmp_path / "store")
    without = precompute(plan, study, tmp_path, features=False)
    assert without["computed"] == {"volumes": 3, "labels": 3, "features": 0}
    assert without["missing"] == everywhere(0)

    document = precompute(plan, study, tmp_path)
    assert document["computed"] == {"volumes": 0, "labels": 0, "features": 3}
    assert document["reused"] == {"volumes": 3, "labels": 3, "features": 0}
    assert document["volumes_per_second"] > 0
    assert 0 < document["extractor_busy"] <= 1
    assert sum(worker["volumes"] for worker in document["workers"]) == 3
    assert without["extractor_busy"] is None
    for case in study.cases:
        assert_stored(study, case.id, store)
    two, keys = study.cases[1], StudyIndex.of(study, Mind(), "float16").keys["two"]
    made = {kind: store.provenance(kind, key) for kind, key in keys.entries()}
    assert {kind: origin["source"] for kind, origin in made.items()} == {
        "volumes": str(two.image), "labels": str(two.label), "features": str(two.image)
    }  # fmt: skip
    for origin in made.values():
        assert origin["case"] == "two"
        assert {"who", "when", "version", "commit"} <= origin.keys()
    assert made["labels"]["volume"] == made["features"]["volume"] == keys.volume
    assert made["features"]["extractor"] == Mind().fingerprint

    mask = read_mask(study.cases[1].label)
    write_mask(study.cases[1].label, 1 - mask.array, mask.affine)
    before = records(store)
    corrected = precompute(plan, study, tmp_path)
    assert corrected["computed"] == {"volumes": 0, "labels": 1, "features": 0}
    assert_stored(study, "two", store)
    assert before.items() <= records(store).items()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_broken_cases_are_named_after_all_others_are_stored(tiny: StudyFolder, tmp_path: Path) -> None:
    path = tiny.write()
    image = tiny.image(0)
    image.write_bytes(image.read_bytes()[:100])
    write_mask(tiny.label(1), np.full((5, 6, 7), 2), np.eye(4))
    study, store = load_study(path, tmp_path), FeatureStore(tmp_path / "store")
    with pytest.raises(StudyError) as refusal:
        precompute(experiment(path), study, tmp_path)
    assert len(refusal.value.problems) == 2
    assert "2 of 3 cases" in str(refusal.value)
    assert refusal.value.problems[0].startswith("case one: ")
    assert "truncated" in refusal.value.problems[0]
    assert refusal.value.problems[1].startswith("case two: ")
    assert "label value 2 is unknown" in refusal.value.problems[1]
    assert_stored(study, "three", store)
    assert StudyIndex.of(study, Mind(), "float16").count(store)[1]["features"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_cases_that_share_files_are_computed_once(tiny: StudyFolder, tmp_path: Path) -> None:
    study = load_study(tiny.write(), tmp_path)
    twin = replace(study, cases=(*study.cases, replace(study.cases[0], id="four", label=study.cases[1].label)))
    document = precompute(experiment(tmp_path / "study.yaml"), twin, tmp_path)
    assert document["computed"] == {"volumes": 3, "labels": 4, "features": 3}


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_case(tiny: StudyFolder, tmp_path: Path) -> None:
    for index in range(3):
        write_volume(tiny.image(index), np.random.default_rng(index).random((64, 64, 64), np.float32), np.eye(4))
        write_mask(tiny.label(index), np.zeros((64, 64, 64)), np.eye(4))
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    killed = []

    def kill_one_worker() -> None:
        while not killed:
            # A volume in the store means that its worker is now extracting features.
            if any(store.entries("volumes")):
                busy = [child for child in psutil.Process().children(recursive=True) if is_worker(child)]
                busy[0].kill()
                killed.append(busy[0].pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    try:
        document = precompute(experiment(tmp_path / "study.yaml"), study, tmp_path, workers=1)
    finally:
        killed.append(0)
        killer.join()
    assert killed[0]
    assert document["missing"] == everywhere(0)
    for case in study.cases:
        assert_stored(study, case.id, store)


def is_worker(process: psutil.Process) -> bool:
    try:
        return "ray::Worker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(tiny: StudyFolder, tmp_path: Path) -> None:
    tiny.rows.append(
        {**tiny.rows[0], "image": "images/four_0000.nii.gz", "label": "labels/four.nii.gz", "subject": "4"}
    )
    for index in range(4):
        write_volume(tiny.image(index), np.random.default_rng(index).random((56, 56, 56), np.float32), np.eye(4))
        write_mask(tiny.label(index), np.zeros((56, 56, 56)), np.eye(4))
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    (tmp_path / "experiment.yaml").write_text("name: tiny\nstudy: study.yaml\nselection: {rule: target_validation}\n")
    call = [sys.executable, str(REPOSITORY / "features" / "precompute.py"), "experiment.yaml", "--root", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    driver = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = []
    while not any(store.entries("features")):
        assert driver.poll() is None, "the driver ended before it was killed"
        family = psutil.Process(driver.pid).children(recursive=True)
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # Ray's own agents may outlive a killed driver by a minute; what could still write to the store may not.
    agents = [process for process in family if process.is_running() and "Agent" in process.name()]
    _, alive = psutil.wait_procs([process for process in family if process not in agents], timeout=60)
    assert not alive, "the killed driver's workers still run"
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()
    finished = records(store)
    for kind, key in finished:
        store.verify(kind, key)

    done = subprocess.run([*call, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    manifest = json.loads((tmp_path / "tiny" / "precompute.manifest.json").read_text())
    assert manifest["exit"] == "finished"
    assert manifest["stages"]["precompute"]["result"] == document
    for kind in KINDS:
        assert document["reused"][kind] == sum(entry[0] == kind for entry in finished)
        assert document["computed"][kind] + document["reused"][kind] == 4
    assert document["missing"] == everywhere(0)
    assert finished.items() <= records(store).items()
    assert not list(store.folder.glob("*/.*"))
    for case in study.cases:
        assert_stored(study, case.id, store)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_disk_that_fills_up_under_a_worker_is_one_sentence_with_the_case(tiny: StudyFolder, tmp_path: Path) -> None:
    study = load_study(tiny.write(), tmp_path)
    # Room for the bytes, which is looked at beforehand, but not for the files of three cases.
    with small_disk(tmp_path / "small", "size=16m,nr_inodes=50") as root:
        with pytest.raises(ResourceError, match=r"cannot write \w+/\w+ \(case (one|two|three)\).*No space left"):
            precompute(experiment(tmp_path / "study.yaml"), study, root)
        store = FeatureStore(root / "store")
        assert not leftovers(store)
        for entry in store.everything():
            store.verify(*entry)


def test_a_disk_that_cannot_hold_the_study_is_refused_with_numbers(tiny: StudyFolder, tmp_path: Path) -> None:
    root = Path("/proc/dropgen")  # a file system without free space
    if not root.parent.is_dir():
        pytest.skip("needs Linux's /proc")
    study = load_study(tiny.write(), tmp_path)
    with pytest.raises(ResourceError, match=r"need \d+\.\d+ .B and /proc/dropgen/store has 0 bytes free"):
        precompute(experiment(tmp_path / "study.yaml"), study, root)
