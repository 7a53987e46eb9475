from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from dropgen.platform.evaluation.surface import SurfaceDistances, box_of, surface

SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (0.7, 1.3, 5.0), (2.5, 0.4, 1.0)])


def masks(seed: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, 6, 5, 4)) < density
    one[2, 2, 2] = other[3, 1, 1] = True
    return one, other


def brute_force_surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with one of their six neighbours, or the edge of the volume, outside; millimetres unscaled."""
    held = {tuple(voxel) for voxel in np.argwhere(mask)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    edge = [v for v in sorted(held) if any((v[0] + x, v[1] + y, v[2] + z) not in held for x, y, z in steps)]
    return np.array(edge, dtype=np.float64)


def brute_force(one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    a, b = brute_force_surface(one) * spacing, brute_force_surface(other) * spacing
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return distances.min(axis=1), distances.min(axis=0)


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.95), SPACINGS)
def test_distances_equal_every_pair_of_surface_voxels_measured(
    seed: int, density: float, spacing: tuple[float, ...]
) -> None:
    one, other = masks(seed, density)
    found = SurfaceDistances.between(one, other, spacing)
    assert found is not None
    there, back = brute_force(one, other, spacing)
    np.testing.assert_allclose(np.sort(found.from_prediction), np.sort(there), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sort(found.from_truth), np.sort(back), rtol=1e-5, atol=1e-5)
    tolerance = 1.7
    near = np.count_nonzero(there <= tolerance * 1.00001) + np.count_nonzero(back <= tolerance * 1.00001)
    assert found.nsd(tolerance) == pytest.approx(near / (len(there) + len(back)))
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.9), SPACINGS)
def test_hd95_and_nsd_equal_monai(seed: int, density: float, spacing: tuple[float, ...]) -> None:
    one, other = masks(seed, density)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
    found = SurfaceDistances.between(one, other, spacing)
    assert found is not None
    options = {"include_background": True, "spacing": spacing}
    expected = compute_hausdorff_distance(*tensors, percentile=95, **options)
    assert found.hd95 == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    shares = compute_surface_dice(*tensors, class_thresholds=[1.71], **options)
    assert found.nsd(1.71) == pytest.approx(float(shares), abs=1e-6)


def test_a_tolerance_of_whole_voxels_holds_what_lies_that_far_away() -> None:
    one, other = np.zeros((2, 40, 3, 3), bool)
    one[1], other[4] = True, True
    found = SurfaceDistances.between(one, other, (0.7, 1.0, 1.0))
    assert found is not None
    assert found.nsd(2.1) == 1.0
    assert found.nsd(2.09) == 0.0


def test_an_empty_mask_has_no_surface_and_a_full_one_has_the_edge_of_the_volume() -> None:
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert SurfaceDistances.between(empty, full, (1.0, 1.0, 1.0)) is None
    assert SurfaceDistances.between(full, empty, (1.0, 1.0, 1.0)) is None
    assert SurfaceDistances.between(empty, empty, (1.0, 1.0, 1.0)) is None
    assert box_of(empty) is None
    assert np.count_nonzero(~surface(full)) == 1 * 2 * 3


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_where_the_masks_lie_in_the_volume_changes_nothing(seed: int, margin: int) -> None:
    one, other = masks(seed, 0.3)
    moved = [np.pad(mask, ((margin, 2), (0, margin), (1, 1))) for mask in (one, other)]
    here, there = (SurfaceDistances.between(*pair, (1.0, 2.0, 3.0)) for pair in ((one, other), moved))
    assert here is not None
    assert there is not None
    assert here.hd95 == there.hd95
    np.testing.assert_array_equal(here.from_truth, there.from_truth)
