"""The intensity curves of DSBN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.platform.methods.bezier import bezier_curve, random_curve

GRID = np.linspace(0, 1, 4001)
CORNERS = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(np.array)


@settings(max_examples=50)
@given(control=CORNERS)
def test_a_rising_curve_rises_from_0_to_1(control: np.ndarray) -> None:
    values = bezier_curve(control, falling=False)(GRID)
    assert values[0] == 0
    assert values[-1] == 1
    assert (np.diff(values) >= -1e-6).all()


@settings(max_examples=50)
@given(control=CORNERS)
def test_a_falling_curve_falls_from_1_to_0(control: np.ndarray) -> None:
    values = bezier_curve(control, falling=True)(GRID)
    assert values[0] == 1
    assert values[-1] == 0
    assert (np.diff(values) <= 1e-6).all()


@pytest.mark.parametrize("falling", [False, True])
def test_control_points_at_the_ends_give_the_identity_and_the_inversion(falling: bool) -> None:
    values = bezier_curve(np.array([0.0, 0, 1, 1]), falling)(GRID)
    np.testing.assert_allclose(values, 1 - GRID if falling else GRID, atol=1e-6)


def test_it_is_the_parametric_cubic_and_falls_along_its_reversed_heights() -> None:
    control, t = np.array([0.2, 0.7, 0.4, 0.9]), np.linspace(0, 1, 57)
    points = np.array([[0, 0], control[:2], control[2:], [1, 1]])
    # De Casteljau: the curve by repeated linear interpolation.
    level = [np.broadcast_to(point, (len(t), 2)) for point in points]
    while len(level) > 1:
        level = [(1 - t)[:, None] * a + t[:, None] * b for a, b in itertools.pairwise(level)]
    x, y = level[0].T
    np.testing.assert_allclose(bezier_curve(control, falling=False)(x), y, atol=1e-5)
    np.testing.assert_allclose(bezier_curve(control, falling=True)(x), y[::-1], atol=1e-5)


def test_random_curves_rise_and_fall_with_equal_chance_and_follow_the_generator() -> None:
    generator = np.random.default_rng(0)
    falling = sum(random_curve(generator)(np.zeros(1))[0] == 1 for _ in range(1000))
    assert abs(falling - 500) < 64  # 4 standard deviations
    one, two = (random_curve(np.random.default_rng(7))(GRID) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.dtype == np.float32
