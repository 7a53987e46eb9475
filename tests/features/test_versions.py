"""Entries go by a version of the maths that made them, and maths that give other numbers have another version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dropgen.config import Component
from dropgen.errors import StoreError
from dropgen.features.extractors import extract
from dropgen.features.extractors import mind as mind_file
from dropgen.features.extractors import random_conv as random_file
from dropgen.features.extractors.mind import Mind
from dropgen.features.extractors.random_conv import RandomConv
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies import prepare as prepare_file
from dropgen.features.studies.intensity import RULES
from dropgen.features.studies.prepare import Preparation, prepare
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import Volume
from dropgen.features.worker import Recipe, Work, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StudyFolder

RAISE = "the numbers of this version are on record: raise the VERSION that is compared here and record the new ones"
OBLIQUE = np.array([[-0.9, 0.1, 0.0, 5.0], [0.1, 0.0, 2.5, -3.0], [0.0, 1.2, 0.1, 7.0], [0.0, 0.0, 0.0, 1.0]])


def field(shape: tuple[int, int, int]) -> np.ndarray:
    """Something in every voxel, the same on every machine."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    return np.float32(900 * np.sin(0.7 * x + 0.3 * y) * np.cos(0.5 * z - 0.2 * x) + 40 * ((3 * x + 5 * y + 7 * z) % 11))


def seen(values: np.ndarray) -> list[float]:
    """Mean, spread, and a sum in which every place has its own weight."""
    flat = values.astype(np.float64).ravel()
    return [flat.mean(), flat.std(), float(flat @ np.cos(0.37 * np.arange(flat.size))) / np.sqrt(flat.size)]


# By rule: what `seen` says of the unit scale, shift and scale.
PREPARED = {
    "minmax": [0.463339, 0.241649, 0.0183207, 0, 1],
    "percentile": [0.465632, 0.248532, 0.0187142, 0, 1],
    "zscore": [0.463339, 0.241649, 0.0183207, 0.463339, 0.241649],
    "hu": [0.577146, 0.204267, 0.0110621, 0, 1],
}
FEATURES = {
    "mind": [0.491736, 0.304433, 0.00112075],
    "random": [0.109369, 0.572006, 0.0323302],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_prepared_volume_is_what_its_version_made_of_it(rule: str) -> None:
    prepared = prepare([Volume(field((9, 11, 6)), OBLIQUE)], Preparation((1.0, 1.1, 1.3), (8, 8, 8), rule))
    assert prepare_file.PREPARE_VERSION == 1, RAISE
    found = [*seen(prepared.unit), *prepared.shift, *prepared.scale]
    assert_allclose(found, PREPARED[rule], rtol=1e-4, atol=1e-5, err_msg=RAISE)


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_what_their_version_made_of_them(name: str) -> None:
    extractor = Mind((1, 2)) if name == "mind" else RandomConv()
    assert (mind_file.VERSION, random_file.VERSION) == (2, 1), RAISE
    unit = field((9, 8, 7))
    features, _ = extract(extractor, ((unit - unit.min()) / np.ptp(unit))[None])
    assert_allclose(seen(features), FEATURES[name], rtol=1e-4, atol=1e-5, err_msg=RAISE)


@pytest.mark.parametrize(("file", "version", "kinds"), [
    (prepare_file, "PREPARE_VERSION", {"volumes", "labels", "features"}), (mind_file, "VERSION", {"features"}),
])  # fmt: skip
def test_another_version_shares_no_entry_of_what_it_changes_and_takes_none_of_the_old(
    file: object, version: str, kinds: set[str], tiny: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store")
    before = StudyIndex.of(study, Mind(), "float16")
    worker = Worker(Recipe(store, study, Component.of("mind"), "float16", "commit"))
    for case in study.cases:
        keys = before.keys[case.id]
        assert worker.run(Work(case, keys, ("volumes", "labels", "features"))).problem is None
    before.require(store)
    monkeypatch.setattr(file, version, 99)
    after = StudyIndex.of(study, Mind(), "float16")
    assert {kind for kind, _ in set(after.entries()) - set(before.entries())} == kinds
    with pytest.raises(StoreError, match=r"lacks the .*features of case one and of 2 more of the 3 cases"):
        after.require(store)
