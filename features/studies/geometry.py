"""Voxel grids in the world: axis orientation, resampling between grids, and whether two grids agree."""

from __future__ import annotations

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import affine_transform

from dropgen.features.studies.volume import Volume

GRID_TOLERANCE = 1e-3  # mm; headers written by different tools differ by float32 rounding, far below this
SAME_SPACING = 1e-4  # relative; below this a resampling would only blur


def to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Permutes and flips [X, Y, Z] from the axis order of `affine` to the nearest RAS order."""
    return np.ascontiguousarray(apply_orientation(array, io_orientation(affine)))


def ras_view(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """`to_ras` without a copy: what is written to the view stands in the array."""
    view: np.ndarray = apply_orientation(array, io_orientation(affine))
    return view


def ras_grid(shape: tuple[int, ...], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of what `to_ras` makes of a grid."""
    orientation = io_orientation(affine)
    turned = [0, 0, 0]
    for axis, size in zip(orientation[:, 0].astype(int), shape, strict=True):
        turned[axis] = size
    return tuple(turned), affine @ inv_ornt_aff(orientation, shape)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Voxel edge lengths [3] in mm, along the array's axes."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def step_between(affine: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """How many voxels [3] of the grid `affine` one voxel of `spacing` mm spans; exactly 1 where they are the same."""
    step = np.asarray(spacing) / spacing_of(affine)
    return np.where(np.abs(step - 1) < SAME_SPACING, 1.0, step)


def resampled_shape(shape: tuple[int, ...], step: np.ndarray) -> tuple[int, int, int]:
    """The number of voxels per axis that comes closest to the same extent, at least 1."""
    x, y, z = (max(1, int(np.floor(size / width + 0.5))) for size, width in zip(shape, step, strict=True))
    return x, y, z


def resample(array: np.ndarray, shape: tuple[int, ...], step: np.ndarray, order: int) -> np.ndarray:
    """Samples [X, Y, Z] on a grid with the same centre and other voxels; values repeat beyond the border.

    Voxel i of the result lies at index `(i - (n_new - 1) / 2) * step + (n_old - 1) / 2` of the input: the two
    grids share the centre of their field of view, so the result does not depend on the direction of an axis.

    Args:
        array: Input on the old grid.
        shape: Voxels of the new grid.
        step: Voxels of the old grid per voxel of the new one, [3].
        order: 1 linear, 0 nearest.
    """
    if shape == array.shape and (step == 1).all():
        return array
    offset = (np.array(array.shape) - 1) / 2 - step * (np.array(shape) - 1) / 2
    return np.asarray(affine_transform(array, step, offset, shape, order=order, mode="nearest", prefilter=False))


def nearest_index(old: int, new: int, step: float) -> np.ndarray:
    """Which voxel of one axis `resample` takes with order 0 for each voxel of the new one, `[new]`."""
    return resample(np.arange(old, dtype=np.int32), (new,), np.array([step]), order=0)


def resampled_affine(
    affine: np.ndarray, old_shape: tuple[int, ...], new_shape: tuple[int, ...], step: np.ndarray
) -> np.ndarray:
    """The affine [4, 4] of `resample`'s result."""
    index = np.diag([*step, 1.0])
    index[:3, 3] = (np.array(old_shape) - 1) / 2 - step * (np.array(new_shape) - 1) / 2
    return affine @ index


def grid_difference(
    mask: Volume, shape: tuple[int, ...], affine: np.ndarray, what: str = "label", other: str = "image"
) -> str | None:
    """Says on which axis and by how much a mask leaves an image's grid; None where the grids agree."""
    for axis, size, expected in zip("xyz", mask.array.shape, shape, strict=True):
        if size != expected:
            return f"axis {axis} of the {what} has {size} voxels, of the {other} {expected}"
    difference = np.abs(mask.affine - affine)[:3]
    if difference.max() <= GRID_TOLERANCE:
        return None
    row, column = np.unravel_index(int(difference.argmax()), difference.shape)
    step = "origin" if column == 3 else f"step of axis {'xyz'[column]}"
    return f"{step} along world {'xyz'[row]} differs by {difference[row, column]:.4g} mm between {what} and {other}"
