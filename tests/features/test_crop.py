"""The crop of a memory budget: legal, as large as fits, and reduced where it is longest against the volumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.errors import ResourceError
from dropgen.features.studies.crop import Crop, median_shape, most_downs, plan_crop

SPACING = st.tuples(*[st.floats(0.3, 8)] * 3)
SIZE = st.tuples(*[st.integers(16, 300)] * 3)


@given(SPACING, SIZE, st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_a_crop_is_legal_fits_and_never_shrinks_with_memory(
    spacing: tuple[float, float, float], size: tuple[int, int, int], wanted: int, tenths: int, more: int
) -> None:
    downs = most_downs(np.array(size), wanted)
    least, most = (2 * 2**downs) ** 3, math.prod(size)
    budgets = [least + max(0, most - least) * part // 10 for part in (tenths, min(10, tenths + more))]
    small, large = (plan_crop(spacing, np.array(size), downs, math.prod, budget) for budget in budgets)
    for crop, budget in zip((small, large), budgets, strict=True):
        assert math.prod(crop) <= budget
        assert all(edge % 2**downs == 0 and edge >= 2 * 2**downs for edge in crop)
        assert all(edge < most + 2**downs for edge, most in zip(crop, size, strict=True) if edge > 2 * 2**downs)
    assert all(one <= other for one, other in zip(small, large, strict=True))


def test_volumes_that_fit_whole_are_taken_whole() -> None:
    assert plan_crop((1.0, 1.0, 1.0), np.array((36, 50, 36)), 2, math.prod, 10**9) == (36, 52, 36)


def test_memory_is_taken_from_the_axis_that_is_longest_against_the_volumes() -> None:
    size = np.array((256, 256, 24))
    first = plan_crop((1.25, 1.25, 8.0), size, 2, math.prod, math.prod(size.tolist()) - 1)
    assert first == (252, 256, 24)  # the finest of equals
    later = plan_crop((1.25, 1.25, 8.0), size, 2, math.prod, 128 * 128 * 12)
    assert np.ptp(later / size) <= 4 / 24  # as alike as steps of 4 voxels can make them


def test_a_first_guess_is_a_cube_in_millimetres() -> None:
    crop = plan_crop((1.0, 1.0, 4.0), np.array((4096, 4096, 4096)), 4, math.prod, 256**3 * 2)
    assert crop[0] == crop[1]
    assert crop[0] == pytest.approx(4 * crop[2], rel=0.1)


def test_a_budget_below_the_smallest_crop_is_refused_with_both_numbers() -> None:
    def bytes_of(crop: Crop) -> int:
        return 1000 * math.prod(crop)

    with pytest.raises(
        ResourceError, match=r"\[16, 16, 16\] that 3 downsamplings take needs 4\.1 MB and the budget is 4\.1 kB"
    ):
        plan_crop((1.0, 1.0, 1.0), np.array((64, 64, 64)), 3, bytes_of, 4096)


@pytest.mark.parametrize(("shortest", "downs"), [(300, 5), (64, 5), (63, 4), (16, 3), (12, 2), (4, 1), (2, 1)])
def test_the_shortest_axis_says_how_often_a_volume_can_be_halved(shortest: int, downs: int) -> None:
    assert most_downs(np.array((500, 500, shortest)), 5) == downs


def test_volumes_are_not_halved_so_often_that_most_of_a_crop_is_padding() -> None:
    assert most_downs(np.array((36, 50, 37)), 5) == 3  # of 16 voxels a crop of 48 x 64 x 48 would be


def test_sizes_are_those_after_resampling() -> None:
    spacings, shapes = np.array([(1.0, 1.0, 8.0), (2.0, 2.0, 8.0)]), np.array([(100, 100, 10), (50, 50, 10)])
    assert median_shape(spacings, shapes, (1.0, 1.0, 4.0)).tolist() == [100, 100, 20]
