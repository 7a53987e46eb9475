"""Which voxels count as interior, and in what units a difference is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dropgen.features.extractors import instance_norm
from dropgen.platform.evaluation.analyses.replay import difference, interior
from dropgen.platform.training.plan import affine_map


def test_the_interior_is_the_crop_without_its_border() -> None:
    inside = interior((6, 7, 5), (1, 2, 0))
    expected = torch.zeros(6, 7, 5, dtype=torch.bool)
    expected[1:5, 2:5] = True
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("angle", [10, 45])
def test_the_interior_of_a_rotated_crop_comes_from_the_interior(angle: float) -> None:
    affine = affine_map(np.array([0, 0, np.deg2rad(angle)]), np.zeros(6), np.ones(3))
    inside = interior((9, 9, 9), (2, 2, 2), affine)
    for place in np.argwhere(inside.numpy()):
        assert np.abs(place - 4).max() <= 2
        assert np.abs(affine @ (place - 4)).max() <= 2 + 1e-9
    assert inside.sum() < interior((9, 9, 9), (2, 2, 2)).sum()


def test_a_difference_is_in_standard_deviations_of_what_lies_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    one, inside = torch.randn(3, 8, 8, 8, generator=generator), interior((8, 8, 8), (1, 1, 1))
    other = 5 * one - 2
    other[:, 0] = 1e6  # outside
    same = difference(one, other, inside)
    assert same.cka == pytest.approx(1, abs=1e-6)
    assert same.max_error < 1e-4
    assert same.voxels == 6**3
    changed = one.clone()
    changed[0, 3, 3, 3] += 2
    core = (slice(None), *(slice(1, 7),) * 3)
    error = (instance_norm(one[core][None]) - instance_norm(changed[core][None])).abs()
    found = difference(one, changed, inside)
    assert found.mean_error == pytest.approx(float(error.mean()), rel=1e-4)
    assert found.max_error == pytest.approx(float(error.max()), rel=1e-4)


def test_without_voxels_there_is_no_number() -> None:
    found = difference(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool))
    assert found.voxels == 0
    assert all(math.isnan(value) for value in found[:3])
