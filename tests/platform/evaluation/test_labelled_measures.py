"""Metrics of studies with voxels to ignore and of studies with regions that overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dropgen.config import Evaluation
from dropgen.features.studies.labelling import Labelling
from dropgen.features.studies.study import Case, Study, load_study
from dropgen.features.studies.volume import read_mask
from dropgen.platform.evaluation.inference import Slab, labels
from dropgen.platform.evaluation.measures import MEASURES, how, measure
from dropgen.platform.evaluation.metrics import dice, labelled_dice
from dropgen.platform.evaluation.quality import find_classes, record_classes
from dropgen.platform.training.losses import truth_of

CLASSES = ("background", "organ", "vessel")
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
CASE = Case("c", "p", "new", None, "test", (Path("c"),), Path("c"))
DISJOINT = {"regions": ((1,), (2,)), "regions_class_order": (1, 2)}
NESTED = {"regions": ((1, 2), (2,)), "regions_class_order": (1, 2)}


def study(**options: Any) -> Study:
    return Study("toy", CLASSES, (1, 1, 1), (16, 16, 16), "minmax", True, (CASE,), tubular=("vessel",), **options)


def score(prediction: np.ndarray, truth: np.ndarray, toy: Study) -> dict[str, np.ndarray]:
    return measure(prediction, truth, AFFINE, CASE, toy, 2.0)


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.random.default_rng(seed).integers(0, 3, (2, 5, 4, 3), dtype=np.uint8)
    truth[0, 0, :2] = 1, 2
    return prediction, truth


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in MEASURES:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@given(st.integers(0, 2**32 - 1), st.sampled_from([{}, NESTED]))
def test_what_is_predicted_where_the_truth_is_to_be_ignored_changes_no_measure(seed: int, regions: Any) -> None:
    prediction, truth = maps(seed)
    generator, toy = np.random.default_rng(seed), study(ignore=3, **regions)
    unknown = generator.random(truth.shape) < 0.4
    truth[unknown] = 3
    found = score(prediction, truth, toy)
    prediction[unknown] = generator.integers(0, 3, unknown.sum())
    assert_equal(found, score(prediction, truth, toy))


@given(st.integers(0, 2**32 - 1))
def test_counts_are_those_of_the_known_voxels_alone(seed: int) -> None:
    prediction, truth = maps(seed)
    toy, unknown = study(ignore=3), truth.copy()
    unknown[3:] = 3
    expected = dice(prediction[:3], truth[:3], 3)
    np.testing.assert_array_equal(labelled_dice(prediction, unknown, toy.labelling), expected)
    volumes = [np.count_nonzero(prediction[:3] == one) - np.count_nonzero(truth[:3] == one) for one in (1, 2)]
    found = score(prediction, unknown, toy)["volume_error_ml"]
    np.testing.assert_allclose(found[np.isfinite(found)], (np.array(volumes) * 0.02)[np.isfinite(found)])


@given(st.integers(0, 2**32 - 1))
def test_disjoint_regions_and_labels_are_measured_alike(seed: int) -> None:
    prediction, truth = maps(seed)
    assert_equal(score(prediction, truth, study(**DISJOINT)), score(prediction, truth, study()))


def test_a_region_is_scored_as_the_union_of_its_values() -> None:
    truth = np.array([[[1, 1, 2, 0]]], np.uint8)
    prediction = np.array([[[2, 1, 1, 0]]], np.uint8)  # as a whole right, its part nowhere
    assert labelled_dice(prediction, truth, study(**NESTED).labelling).tolist() == [1, 0]
    assert labelled_dice(prediction, truth, study().labelling).tolist() == [0.5, 0]


def test_later_regions_are_written_over_earlier_ones() -> None:
    logits = torch.tensor([[1.0, 1.0, -1.0, 0.0], [-1.0, 2.0, 3.0, 0.0]]).view(2, 4, 1, 1)
    assert labels(Slab(0, 0, logits), (5, 7)).ravel().tolist() == [5, 7, 7, 0]
    assert labels(Slab(0, 0, logits.flip(0)), (7, 5)).ravel().tolist() == [5, 5, 7, 0]


def test_volumes_of_regions_are_those_of_all_their_values_without_ignored_voxels() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0], mask[1, 0], mask[3] = 1, 2, 3  # the last to be ignored
    found = find_classes(mask, 0.5, CLASSES, NESTED["regions"])
    assert {name: one.ml for name, one in found.items()} == {"organ": 10, "vessel": 2}
    assert find_classes(np.zeros_like(mask), 0.5, CLASSES, NESTED["regions"])["vessel"].fragments == 0
    records = record_classes([mask, mask], 0.5, CLASSES, NESTED["regions"])
    assert records["organ"].log_ml == pytest.approx(np.log(10))
    assert record_classes([mask], 0.5, CLASSES)["vessel"].log_ml == pytest.approx(np.log(2))


def test_what_labels_mean_is_part_of_an_evaluation_and_changes_no_plain_one() -> None:
    plain, ignoring, nested = (how(one, Evaluation()) for one in (study(), study(ignore=3), study(**NESTED)))
    assert "labels" not in plain
    assert ignoring != nested and ignoring["labels"]["labels"]["ignore"] == 3


def test_the_real_tumours_come_back_as_regions(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions, as a network that knows the truth would find them, written as values and scored: nothing is lost."""
    monkeypatch.setenv("DROPGEN_DATA", str(data))
    tumours = load_study(Path(__file__).parents[3] / "configs" / "studies" / "brats2013.yaml", tmp_path)
    labelling: Labelling = tumours.labelling
    for case in tumours.cases:
        assert case.label is not None
        truth = read_mask(case.label).array
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(truth))
        truth = truth[box]
        logits = 2 * truth_of(torch.from_numpy(truth)[None, None], labelling)[0][0] - 1
        written = labels(Slab(0, 0, logits), labelling.order)
        assert set(np.unique(written)) <= {0, *labelling.order}
        expected = [np.isin(truth, values).any() for values in labelling.regions]
        np.testing.assert_array_equal(labelled_dice(written, truth, labelling), np.where(expected, 1.0, np.nan))
