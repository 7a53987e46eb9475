from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from dropgen.platform.evaluation.centreline import centreline_dice
from dropgen.platform.evaluation.metrics import dice


def vessel(radius: int) -> np.ndarray:
    mask = np.zeros((40, 13, 13), bool)
    mask[2:38, 6 - radius : 7 + radius, 6 - radius : 7 + radius] = True
    return mask


@given(st.integers(0, 2**32 - 1))
def test_it_is_the_formula_over_voxels_of_the_centrelines(seed: int) -> None:
    one, other = np.random.default_rng(seed).random((2, 8, 7, 6)) < 0.4
    ours, theirs = ({tuple(v) for v in np.argwhere(skeletonize(mask, method="lee") > 0)} for mask in (one, other))
    precision = sum(bool(other[voxel]) for voxel in ours) / len(ours)
    sensitivity = sum(bool(one[voxel]) for voxel in theirs) / len(theirs)
    expected = 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0
    assert centreline_dice(one, other) == pytest.approx(expected)


def test_a_gap_in_a_vessel_costs_centreline_and_a_thin_wall_does_not() -> None:
    truth, thin, broken = vessel(3), vessel(1), vessel(3)
    broken[15:25] = False
    assert centreline_dice(truth, truth) == 1.0
    assert centreline_dice(thin, truth) > 0.95 > centreline_dice(broken, truth)
    assert dice(thin, truth, 2)[0] < dice(broken, truth, 2)[0]


def test_nothing_predicted_is_zero_and_nothing_there_has_no_value() -> None:
    empty = np.zeros((5, 5, 5), bool)
    assert centreline_dice(empty, vessel(1)[:5, :5, :5] | np.eye(5, dtype=bool)[:, :, None]) == 0.0
    assert math.isnan(centreline_dice(vessel(1), np.zeros_like(vessel(1))))
