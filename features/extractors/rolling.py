"""Features of a volume for windows that move along one axis: extracted once, let go when the windows have passed."""

from __future__ import annotations

import math

import numpy as np

from dropgen.features.extractors import Extractor, extract, fit
from dropgen.features.extractors.tiles import Shape
from dropgen.features.planes import Box, along, runs

# An exact halo gives the same features whatever the tile; this one is small, because little else is held meanwhile.
ROLLING_BYTES = 2**30


def rolls(extractor: Extractor, depth: int) -> bool:
    """Whether slabs have the very features of the volume, and their halos cost less than what they give.

    Args:
        extractor: One with an exact halo and no grid of its own, such as MIND.
        depth: Planes that a window takes.
    """
    halo, locality = extractor.halo, extractor.locality
    if halo == "global" or locality == "global":
        return False
    return extractor.multiple == extractor.min_size == 1 and halo >= locality and 4 * halo <= depth


def rolling_bytes(extractor: Extractor, shape: Shape, axis: int, depth: int) -> int:
    """Memory that `RollingFeatures` takes: the planes of a window, and the work on one slab with its halo."""
    plane = math.prod(shape) // shape[axis]
    held = 4 * extractor.channels * (depth + _slab_depth(extractor, shape, axis, depth)) * plane
    return held + _working_bytes(extractor, shape, axis, depth)


class RollingFeatures:
    """Cuts raw features out of a volume as an array of them would, holding no more than a window's depth.

    A box that begins before the last one starts a new pass.

    Args:
        extractor: One that `rolls`.
        unit_mxyz: The volume, unit scale.
        axis: Along which boxes come.
        depth: The most planes of a box.
        device: Where the extractor was built.
    """

    def __init__(self, extractor: Extractor, unit_mxyz: np.ndarray, axis: int, depth: int, device: str) -> None:
        self._extractor, self._unit_mxyz, self._device = extractor, unit_mxyz, device
        self._axis, self._depth = axis, depth
        shape = unit_mxyz.shape[1:]
        self._working_bytes = _working_bytes(extractor, shape, axis, depth)
        self._stats = fit(extractor, unit_mxyz, device, self._working_bytes)
        held = [depth if index == axis else size for index, size in enumerate(shape)]
        self._held_cxyz = np.empty((extractor.channels, *held), np.float32)
        self._start = self._stop = 0

    def cut(self, box: Box) -> np.ndarray:
        """Raw features `[C, x, y, z]` of a box."""
        axis, start, stop = self._axis, box[self._axis].start, box[self._axis].stop
        if start < self._start or start > self._stop:
            self._stop = start
        self._start = start
        if stop > self._stop:
            self._extract(self._stop, stop)
            self._stop = stop
        parts = [self._held_cxyz[:, *along(axis, places, box)] for _, places in runs(start, stop, self._depth)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1 + axis)

    def _extract(self, start: int, stop: int) -> None:
        halo = self._extractor.halo
        assert halo != "global"
        first, last = max(0, start - halo), min(self._unit_mxyz.shape[1 + self._axis], stop + halo)
        seen_mxyz = self._unit_mxyz[:, *along(self._axis, slice(first, last))]
        seen_cxyz, _ = extract(self._extractor, seen_mxyz, self._device, self._working_bytes, self._stats)
        for plane, places in runs(start, stop, self._depth):
            part = slice(plane - first, plane - first + places.stop - places.start)
            self._held_cxyz[:, *along(self._axis, places)] = seen_cxyz[:, *along(self._axis, part)]


def _working_bytes(extractor: Extractor, shape: Shape, axis: int, depth: int) -> int:
    """What the work on one slab takes, and so what a part of the whole volume may take while it is fitted."""
    voxels = _slab_depth(extractor, shape, axis, depth) * (math.prod(shape) // shape[axis])
    return min(ROLLING_BYTES, extractor.tile_bytes * extractor.channels * voxels)


def _slab_depth(extractor: Extractor, shape: Shape, axis: int, depth: int) -> int:
    """Planes that are extracted at once: those of a window and the halo on either side."""
    assert extractor.halo != "global"
    return min(depth + 2 * extractor.halo, shape[axis])
