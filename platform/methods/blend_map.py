"""A smooth random map over a crop: where one image fades into another."""

from __future__ import annotations

import math

import numpy as np

CELLS = 4  # per axis; the published 2D map has spacing 48 on images of 192


def blend_map(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """A map between exactly 0 and exactly 1, float32 `[X, Y, Z]`.

    Control points ~ N(0, 1) lie round(size / 4) voxels apart along every axis, one beyond each border; scaled to
    unit l2 norm, interpolated by quadratic B-splines, exponentiated and stretched to [0, 1]. This carries the map of
    Ouyang et al. 2022, who publish it for slices, over to volumes. 0.5 everywhere where the field is constant.

    Args:
        shape: Of the crop, in voxels.
        generator: Draws the control points.
    """
    weights = [_spline_weights(size) for size in shape]
    points = generator.standard_normal([matrix.shape[1] for matrix in weights])
    points /= np.linalg.norm(points)
    field = np.exp(np.einsum("ijk,xi,yj,zk->xyz", points, *weights, optimize=True))
    low, high = field.min(), field.max()
    stretched = (field - low) / (high - low) if high > low else np.full(shape, 0.5)
    return stretched.astype(np.float32)


def _spline_weights(size: int) -> np.ndarray:
    """Weight of every control point at every voxel of one axis, `[size, points]`; rows sum to 1."""
    spacing = max(1, round(size / CELLS))
    voxels = np.arange(size) / spacing
    points = np.arange(-1, math.ceil(voxels[-1]) + 2)
    distance = np.abs(voxels[:, None] - points[None, :])
    tail = np.where(distance <= 1.5, (1.5 - distance) ** 2 / 2, 0)
    weights: np.ndarray = np.where(distance <= 0.5, 0.75 - distance**2, tail)
    return weights
