"""What is said before a precompute begins: memory by the volumes in flight, not by the study."""

from __future__ import annotations

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
from dropgen.features.studies.volume import read_volume

if TYPE_CHECKING:
    from conftest import StudyFolder


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
        prepared = prepare(read_volume(case.image), study.preparation)
        keys = index.keys[case.id]
        store.put_volume(keys.volume, prepared, {"case": case.id})
    told = features_bytes(index, 12, store)
    for case in study.cases:
        keys = index.keys[case.id]
        features, stats = extract(Mind(), np.array(store.volume(keys.volume).unit))
        store.put_features(keys.features, features, stats, {"case": case.id}, dtype)
    chunks = sum(path.stat().st_size for path in store.folder.glob("features/*/c.*"))
    assert told == chunks
