from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import DiceMetric

from dropgen.platform.evaluation.metrics import (
    Spread,
    class_dice,
    dice,
    domain_dice,
    mean_dice,
    pooled_mean,
    subject_dice,
)


@dataclass(frozen=True)
class Scan:
    subject: str
    domain: str = "a"


def scores(*rows: tuple[str, str, list[float]]) -> list[tuple[Scan, np.ndarray]]:
    return [(Scan(subject, domain), np.array(values)) for subject, domain, values in rows]


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 7))
def test_dice_equals_monai(seed: int, classes: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, (size, 4, 3), dtype=np.uint8)
    prediction = generator.integers(0, classes, (size, 4, 3), dtype=np.uint8)

    def one_hot(mask: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.from_numpy(mask.astype(np.int64)), classes).permute(3, 0, 1, 2)[None]

    metric = DiceMetric(include_background=False, reduction="none", ignore_empty=True)
    expected = metric(one_hot(prediction), one_hot(truth))[0].numpy()
    np.testing.assert_allclose(dice(prediction, truth, classes), expected, rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_dice_is_symmetric_where_both_hold_the_class_and_one_for_equal_masks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.integers(0, 3, (2, 4, 4, 4), dtype=np.uint8)
    forward, backward = dice(one, other, 3), dice(other, one, 3)
    both = np.isfinite(forward) & np.isfinite(backward)
    np.testing.assert_array_equal(forward[both], backward[both])
    present = np.isfinite(dice(one, one, 3))
    np.testing.assert_array_equal(dice(one, one, 3)[present], 1.0)


def test_absent_class_is_nan_and_a_missed_one_is_zero() -> None:
    truth = np.zeros((2, 2, 2), np.uint8)
    truth[0] = 1
    prediction = np.full((2, 2, 2), 2, np.uint8)
    values = dice(prediction, truth, 3)
    assert values[0] == 0
    assert math.isnan(values[1])


def test_masks_on_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="different grids"):
        dice(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), 2)


def test_cases_of_one_subject_count_once() -> None:
    cases = scores(("p1", "a", [1.0]), ("p1", "a", [0.0]), ("p1", "a", [0.5]), ("p2", "a", [0.9]))
    assert domain_dice(cases)["a"] == Spread.of([0.5, 0.9])
    assert mean_dice(cases) == pytest.approx(0.7)


def test_a_subject_seen_in_two_domains_counts_in_each() -> None:
    cases = scores(("p1", "a", [1.0]), ("p1", "b", [0.2]))
    assert set(subject_dice(cases)) == {("a", "p1"), ("b", "p1")}
    assert {domain: spread.n for domain, spread in domain_dice(cases).items()} == {"a": 1, "b": 1}


def test_selection_is_the_mean_over_classes_of_the_mean_over_subjects() -> None:
    nan = float("nan")
    cases = scores(("p1", "a", [0.8, nan]), ("p2", "a", [0.4, 0.9]), ("p3", "a", [0.6, nan]))
    # class means 0.6 and 0.9; the mean over subjects of their own means would be 0.683
    assert mean_dice(cases) == pytest.approx(0.75)
    assert domain_dice(cases)["a"].mean == pytest.approx((0.8 + 0.65 + 0.6) / 3)


def test_a_class_or_subject_without_truth_leaves_every_mean_untouched() -> None:
    nan = float("nan")
    with_empty = scores(("p1", "a", [0.5, nan]), ("p2", "a", [nan, nan]))
    assert mean_dice(with_empty) == pytest.approx(0.5)
    assert domain_dice(with_empty)["a"].n == 1
    assert class_dice(with_empty, ("background", "one", "two"))["a"]["two"] == Spread(None, None, None, 0)
    assert math.isnan(mean_dice(scores(("p1", "a", [nan]))))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_spread_is_the_sample_standard_deviation_and_its_error(values: list[float]) -> None:
    spread = Spread.of([*values, float("nan")])
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))
    assert spread.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))


def test_one_subject_has_no_standard_error() -> None:
    assert Spread.of([0.3]) == Spread(0.3, None, None, 1)
    assert Spread.of([]) == Spread(None, None, None, 0)


def test_domains_are_pooled_by_their_number_of_subjects() -> None:
    assert pooled_mean({"a": Spread.of([0.2, 0.4]), "b": Spread.of([0.9]), "c": Spread.of([])}) == pytest.approx(0.5)
    assert pooled_mean({"c": Spread.of([])}) is None
