"""Random monotone intensity curves from [0, 1] to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

POINTS = 1000

# Intensities in [0, 1], any shape, to float32 intensities in [0, 1].
Curve = Callable[[np.ndarray], np.ndarray]


def random_curve(generator: np.random.Generator) -> Curve:
    """A Bezier curve with uniformly random inner control points, rising or falling with equal chance."""
    control = generator.random(4)
    return bezier_curve(control, falling=bool(generator.random() < 0.5))


def bezier_curve(control: np.ndarray, falling: bool) -> Curve:
    """The cubic Bezier curve through (0, 0) and (1, 1) as a function, interpolated between 1000 points.

    With coordinates a, b of the inner points in [0, 1] the derivative's Bernstein coefficients are 3a, 3(b - a) and
    3(1 - b). Since a + (1 - b) - 1 <= a(1 - b) <= sqrt(a(1 - b)) it is nowhere negative: x and y both rise along the
    curve, so y is a function of x, and rises. Read backwards, y falls from 1 to 0: (a, b) = (0, 1) gives v -> 1 - v.

    Args:
        control: Inner control points x1, y1, x2, y2, each in [0, 1].
        falling: Whether dark becomes bright.
    """
    t = np.linspace(0, 1, POINTS)[:, None]
    x, y = (3 * (1 - t) ** 2 * t * control[:2] + 3 * (1 - t) * t**2 * control[2:] + t**3).T
    if falling:
        y = y[::-1]
    return lambda intensities: np.interp(intensities, x, y).astype(np.float32)
