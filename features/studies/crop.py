"""The training crop that a memory budget allows: as wide as the volumes, then cut where it is longest against them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich.filesize import decimal as size_text

from dropgen.errors import ResourceError
from dropgen.features.studies import geometry

START_VOXELS = 256**3  # nnU-Net's first guess, which is certainly larger than what a budget allows
MOST_PADDED = 1.5
Crop = tuple[int, int, int]


def median_shape(spacings: np.ndarray, shapes: np.ndarray, target: tuple[float, float, float]) -> np.ndarray:
    """Median size [3] in voxels of the cases [N, 3] once they are resampled to `target` mm."""
    steps = np.asarray(target) / spacings
    return np.median(
        [geometry.resampled_shape(tuple(shape), step) for shape, step in zip(shapes, steps, strict=True)], 0
    )


def most_downs(size: np.ndarray, wanted: int) -> int:
    """How many halvings suit volumes of `size` voxels, at most `wanted` and at least one.

    Two voxels are left of the shortest axis, and rounding all axes up to a multiple of `2**downs` makes the volume no
    more than half as large again, because that would be padding.
    """

    def suits(downs: int) -> bool:
        padded = np.ceil(size / 2**downs) * 2**downs
        return bool(2 * 2**downs <= size.min() and padded.prod() <= MOST_PADDED * size.prod())

    return next(filter(suits, range(wanted, 1, -1)), 1)


def plan_crop(
    spacing: tuple[float, float, float],
    size: np.ndarray,
    downs: int,
    bytes_of: Callable[[Crop], int],
    budget: int,
) -> Crop:
    """The largest crop that a training step has memory for, of the shape that nnU-Net's rule gives it.

    It begins with a cube in mm, no axis longer than the median volume, and loses as many voxels as one position of the
    deepest level stands for, each time on the axis that is longest against the median volume. Unlike nnU-Net's, whose
    axes are halved each as often as suits it, every axis is divisible by `2**downs`.

    Args:
        spacing: mm of the resampled volumes.
        size: [3] voxels of the median one.
        downs: Halvings of every axis.
        bytes_of: What a step takes at a crop.
        budget: Bytes.

    Raises:
        ResourceError: Not even the smallest crop fits; says by how much.
    """
    factor = 2**downs
    smallest = 2 * factor
    cube = (START_VOXELS * np.prod(spacing)) ** (1 / 3) / np.asarray(spacing)
    crop = [
        max(smallest, -(-int(min(round(edge), most)) // factor) * factor) for edge, most in zip(cube, size, strict=True)
    ]
    while (needed := bytes_of(_as_crop(crop))) > budget:
        shrinkable = [axis for axis in range(3) if crop[axis] > smallest]
        if not shrinkable:
            raise ResourceError(
                f"a training step with the smallest crop {crop} that {downs} downsamplings take needs "
                f"{size_text(needed)} and the budget is {size_text(budget)}; raise --memory-gb, or plan for an "
                "experiment with a smaller training.batch, network.base or network.downs"
            )
        # Among equals the finest axis, which has the most to lose before structures leave the crop.
        crop[max(shrinkable, key=lambda axis: (crop[axis] / size[axis], -spacing[axis]))] -= factor
    return _as_crop(crop)


def _as_crop(crop: list[int]) -> Crop:
    x, y, z = crop
    return x, y, z
