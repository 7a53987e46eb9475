from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dropgen.features.studies import geometry
from dropgen.features.studies.volume import Volume

CODES = [
    "".join(pair[flip] for pair, flip in zip(axes, flips, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]


def diagonal_affine(codes: str, spacing: tuple[float, float, float]) -> np.ndarray:
    """Built from the meaning of the letters alone: world axis of each letter, negative for L, P and I."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        row = next(row for row, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[row, column] = spacing[row] * (1 if code in "RAS" else -1)
    return affine


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_voxels_keep_their_place_in_the_world(codes: str) -> None:
    affine = diagonal_affine(codes, (0.7, 1.1, 2.3))
    shape = (3, 4, 5)
    world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape).astype(float))
    turned_shape, turned_affine = geometry.ras_grid(shape, affine)
    assert np.allclose(geometry.spacing_of(turned_affine), (0.7, 1.1, 2.3))
    assert np.allclose(turned_affine[:3, :3], np.diag((0.7, 1.1, 2.3)))
    positions = np.einsum("ij,jxyz->ixyz", turned_affine[:3, :3], np.indices(turned_shape).astype(float))
    for axis in range(3):
        turned = geometry.to_ras(world[axis], affine)
        assert turned.shape == turned_shape
        assert np.allclose(turned, positions[axis] + turned_affine[axis, 3])
        back = np.empty(shape)
        geometry.ras_view(back, affine)[:] = turned
        assert np.array_equal(back, world[axis])


@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    step=st.tuples(*[st.floats(0.3, 3)] * 3),
    slope=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_linear_resampling_reproduces_a_linear_function_between_voxel_centres(
    sizes: tuple[int, int, int], step: tuple[float, float, float], slope: tuple[float, float, float]
) -> None:
    width = np.array(step)
    shape = geometry.resampled_shape(sizes, width)
    affine = geometry.resampled_affine(np.eye(4), sizes, shape, width)
    array = np.tensordot(slope, np.indices(sizes).astype(float), 1)
    index = np.indices(shape) * width[:, None, None, None] + affine[:3, 3][:, None, None, None]
    last = (np.array(sizes) - 1)[:, None, None, None]
    expected = np.tensordot(slope, np.clip(index, 0, last), 1)  # values repeat beyond the border
    assert np.allclose(geometry.resample(array, shape, width, order=1), expected)


@given(sizes=st.tuples(*[st.integers(1, 12)] * 3), step=st.tuples(*[st.floats(0.2, 4)] * 3), order=st.integers(0, 1))
def test_resampling_commutes_with_a_flip(
    sizes: tuple[int, int, int], step: tuple[float, float, float], order: int
) -> None:
    width = np.array(step)
    shape = geometry.resampled_shape(sizes, width)
    index = [
        (np.arange(new) - (new - 1) / 2) * w + (old - 1) / 2 for new, w, old in zip(shape, step, sizes, strict=True)
    ]
    assume(order == 1 or all((np.abs(axis % 1 - 0.5) > 1e-6).all() for axis in index))  # no tie between two voxels
    array = np.random.default_rng(0).normal(size=sizes)
    flipped = geometry.resample(array[::-1, ::-1, ::-1], shape, width, order)[::-1, ::-1, ::-1]
    assert np.allclose(geometry.resample(array, shape, width, order), flipped)


def test_the_same_spacing_samples_nothing_anew() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5))
    step = geometry.step_between(np.diag([0.7, 1.1, 7.98999977, 1]), (0.7, 1.1, 7.99))
    assert np.array_equal(step, [1, 1, 1])
    assert geometry.resample(array, (3, 4, 5), step, order=1) is array


def test_extent_is_kept_to_half_a_voxel() -> None:
    assert geometry.resampled_shape((10, 10, 1), np.array([2.0, 3.0, 5.0])) == (5, 3, 1)


@pytest.mark.parametrize(("axis", "name"), list(enumerate("xyz")))
def test_a_label_of_another_shape_is_told_by_axis(axis: int, name: str) -> None:
    shape = [4, 4, 4]
    shape[axis] += 1
    difference = geometry.grid_difference(Volume(np.zeros(shape), np.eye(4)), (4, 4, 4), np.eye(4))
    assert difference == f"axis {name} of the label has 5 voxels, of the image 4"


def test_a_label_elsewhere_is_told_by_axis_and_distance() -> None:
    moved = np.eye(4)
    moved[1, 3] = 0.25
    mask = Volume(np.zeros((4, 4, 4)), moved)
    assert "origin along world y differs by 0.25 mm" in str(geometry.grid_difference(mask, (4, 4, 4), np.eye(4)))
    stretched = Volume(np.zeros((4, 4, 4)), np.diag([1, 1, 1.5, 1]))
    assert "step of axis z along world z differs by 0.5 mm" in str(
        geometry.grid_difference(stretched, (4, 4, 4), np.eye(4))
    )
    nearly = Volume(np.zeros((4, 4, 4)), np.diag([1, 1, 1.0005, 1]))
    assert geometry.grid_difference(nearly, (4, 4, 4), np.eye(4)) is None
