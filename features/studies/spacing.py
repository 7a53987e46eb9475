"""The voxel size that a study is resampled to: nnU-Net's rule (Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

import numpy as np

ANISOTROPY = 3.0  # beyond this an axis counts as much coarser, and as much shorter, than the others
COARSE_PERCENTILE = 10
NUDGE = 1e-5  # mm; nnU-Net keeps the axis the coarsest, which decides the order of its axes


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[float, float, float]:
    """The median of every axis, and of one that is much coarser and shorter than the others a finer value.

    Slices that are far apart in most cases are closer in some, and the median would interpolate those away. So where
    the coarsest axis is more than 3 times as coarse as every other one and has less than a third of their voxels, the
    10th percentile of its spacing is taken, but nothing finer than the other axes.

    Args:
        spacings: [N, 3] mm of the training cases.
        shapes: [N, 3] voxels of the same, without empty borders.

    Returns:
        mm, in the order of the axes given.
    """
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    finest_allowed = target[others].max()
    if target[coarse] > ANISOTROPY * finest_allowed and ANISOTROPY * size[coarse] < size[others].min():
        wanted = np.percentile(spacings[:, coarse], COARSE_PERCENTILE)
        target[coarse] = wanted if wanted >= finest_allowed else finest_allowed + NUDGE
    x, y, z = (float(value) for value in target)
    return x, y, z
