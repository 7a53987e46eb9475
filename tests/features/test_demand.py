"""What is said before a precompute begins: memory by the volumes in flight, not by the study."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dropgen.features import precompute as job
from dropgen.features.demand import Demand, demand_of, features_bytes
from dropgen.features.extractors import extract
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import FeatureStore
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import read_volume, write_mask, write_volume

if TYPE_CHECKING:
    from conftest import StudyFolder

REPOSITORY = Path(__file__).resolve().parents[2]
# Says how far the memory of a worker rose above what it had when one small volume was done.
WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from dropgen.config import Component
from dropgen.features.extractors import build, extract
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import load_study
from dropgen.features.worker import Recipe, Worker

def memory(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

mind, root = Component.of("mind"), Path(sys.argv[2])
study, store = load_study(Path(sys.argv[1]), root), FeatureStore(root / "store")
works = missing_work(study, StudyIndex.of(study, build(mind), "float16"), store)
worker = Worker(Recipe(store, study, mind, "float16", "commit"))
extract(build(mind), np.zeros((1, 16, 16, 16), np.float32))
before = memory("VmRSS")
with ThreadPoolExecutor(int(sys.argv[3])) as threads:
    assert [outcome.problem for outcome in threads.map(worker.run, works)] == [None] * len(works)
print(memory("VmHWM") - before)
"""


def test_memory_grows_with_the_volumes_in_flight_and_not_with_the_study(tiny: StudyFolder, tmp_path: Path) -> None:
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    works = missing_work(study, StudyIndex.of(study, Mind(), "float16"), store)
    one, all_three = (demand_of(some, study, Mind(), "float16") for some in (works[:1], works))
    assert all_three.disk == 3 * one.disk == 3 * 5 * 6 * 7 * (4 + 1 + 12 * 2)
    assert [all_three.memory(count) for count in (1, 2, 3)] == [one.memory(count) for count in (1, 2, 3)]
    assert one.memory(1) < one.memory(2) < one.memory(3) < 3 * one.memory(1)


def test_without_an_extractor_a_volume_takes_what_preparing_it_takes(tiny: StudyFolder, tmp_path: Path) -> None:
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    works = missing_work(study, StudyIndex.of(study, None, "float16"), store)
    assert demand_of(works, study, None, "float16").memory(2) == 2 * 4 * 4 * 5 * 6 * 7


@pytest.mark.parametrize(("available", "expected"), [(10**12, 3), (260, 3), (259, 2), (230, 2), (229, 1), (1, 1)])
def test_as_many_are_in_flight_as_fit_into_memory(
    available: int, expected: int, tiny: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    machine = type("Memory", (), {"available": available})
    monkeypatch.setattr(job.psutil, "virtual_memory", lambda: machine)
    demand = Demand(volumes=20, disk=0, extracting=100, waiting=15)
    assert job._plan(demand, study, store, workers=2) == expected
    assert job._plan(replace(demand, volumes=2), study, store, workers=2) == 1


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_the_disk_that_features_will_take_is_known_before_they_are_there(
    dtype: str, tiny: StudyFolder, tmp_path: Path
) -> None:
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    index = StudyIndex.of(study, Mind(), dtype)
    for case in study.cases:
        prepared = prepare([read_volume(case.image)], study.preparation)
        keys = index.keys[case.id]
        store.put_volume(keys.volume, prepared, {"case": case.id})
    told = features_bytes(index, 12, store)
    for case in study.cases:
        keys = index.keys[case.id]
        features, stats = extract(Mind(), np.array(store.volume(keys.volume).unit))
        store.put_features(keys.features, features, stats, {"case": case.id}, dtype)
    chunks = sum(path.stat().st_size for path in store.folder.glob("features/*/c.*"))
    assert told == chunks


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_worker_takes_the_memory_that_was_planned_whatever_the_number_of_cases(
    tiny: StudyFolder, tmp_path: Path
) -> None:
    """Prints what was planned and taken in MiB: `python -m pytest -s -m nightly tests/features/test_demand.py`."""
    shape = (96, 96, 96)
    rows = []
    for number in range(12):
        values = np.random.default_rng(number).integers(0, 1000, shape).astype(np.int16)
        rows.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "split": "train"})
        write_volume(tmp_path / rows[-1]["image"], values, np.eye(4))
        write_mask(tmp_path / rows[-1]["label"], values > 500, np.eye(4))
    for cases, in_flight in ((3, 1), (12, 1), (3, 3), (12, 3)):
        tiny.rows = rows[:cases]
        study = load_study(tiny.write(), tmp_path)
        works = missing_work(study, StudyIndex.of(study, Mind(), "float16"), FeatureStore(tmp_path / "none"))
        planned = demand_of(works, study, Mind(), "float16").memory(in_flight)
        call = [sys.executable, "-c", WORKER, str(tiny.path / "study.yaml"), str(tmp_path / "out"), str(in_flight)]
        done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peak = int(done.stdout)
        shutil.rmtree(tmp_path / "out")
        sys.stdout.write(f"\n| {cases} | {in_flight} | {planned / 2**20:.0f} | {peak / 2**20:.0f} |")
        assert peak < planned
