"""Whole volumes through an extractor in bounded memory: in one pass where that fits, else in tiles with a halo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dropgen.features.extractors import Extractor

Box = tuple[slice, slice, slice]
Shape = tuple[int, ...]

# A constant of the code, not of the machine: the same volume must give the same features everywhere.
WORKING_BYTES = 8 * 2**30
MOST_CUTS = 16  # tiles per axis: 16^3 of the smallest that fit are more than any scanner fills


@dataclass(frozen=True)
class Tile:
    """One part of a volume.

    Attributes:
        core: What the tile gives to the result, in voxels of the volume.
        seen: The core and its halo, in voxels of the padded volume: what the extractor is shown.
    """

    core: Box
    seen: Box

    @property
    def inner(self) -> Box:
        """The core in voxels of `seen`."""
        x, y, z = (
            slice(core.start - seen.start, core.stop - seen.start)
            for core, seen in zip(self.core, self.seen, strict=True)
        )
        return x, y, z


def legal_shape(extractor: Extractor, shape: Shape) -> Shape:
    """The smallest size that the extractor takes and the volume fits into."""
    return tuple(max(_up(size, extractor.multiple), extractor.min_size) for size in shape)


def tiles(extractor: Extractor, shape: Shape, working_bytes: int = WORKING_BYTES) -> Iterator[Tile]:
    """Cuts a volume so that one tile's extraction fits into memory; the cores cover every voxel once.

    Tiles begin at multiples of the extractor's `multiple`, so that its pooling sees the same blocks of voxels as in
    one pass. A volume of which nothing smaller than the halo would fit is cut as finely as the halo lets it.

    Args:
        extractor: Where its halo is "global" there is one tile.
        shape: [X, Y, Z] of the volume, before it is padded to `legal_shape`.
        working_bytes: What extracting one tile may take.
    """
    padded = legal_shape(extractor, shape)
    halo = _halo(extractor)
    spans = []
    for size, end, cuts in zip(shape, padded, _cuts(extractor, shape, working_bytes), strict=True):
        step = _up(-(-size // cuts), extractor.multiple)
        cores = [slice(start, min(start + step, size)) for start in range(0, size, step)]
        spans.append([(core, _widened(core, halo, extractor.multiple, end)) for core in cores])
    for (core_x, seen_x), (core_y, seen_y), (core_z, seen_z) in itertools.product(*spans):
        yield Tile((core_x, core_y, core_z), (seen_x, seen_y, seen_z))


def peak_bytes(extractor: Extractor, shape: Shape) -> int:
    """Memory that extracting a volume takes: the features themselves and the work on one tile."""
    largest: int = max(math.prod(edge.stop - edge.start for edge in tile.seen) for tile in tiles(extractor, shape))
    return extractor.channels * (4 * math.prod(shape) + extractor.tile_bytes * largest)


def _cuts(extractor: Extractor, shape: Shape, working_bytes: int) -> tuple[int, ...]:
    """How often each axis is cut: the least work that fits, because every halo is extracted twice."""
    limit = working_bytes // (extractor.tile_bytes * extractor.channels)
    if extractor.halo == "global" or math.prod(legal_shape(extractor, shape)) <= limit:
        return (1,) * len(shape)
    most = [min(MOST_CUTS, -(-size // extractor.multiple)) for size in shape]

    def cost(cuts: tuple[int, ...]) -> tuple[bool, int, int, int]:
        seen = [
            min(size, _up(-(-size // parts), extractor.multiple) + min(parts - 1, 2) * _halo(extractor))
            for size, parts in zip(legal_shape(extractor, shape), cuts, strict=True)
        ]
        voxels = math.prod(seen)
        parts = math.prod(cuts)
        # Where nothing fits, the least memory; else the least work, which without a halo any cut is: then the fewest.
        return (False, voxels * parts, parts, max(seen)) if voxels <= limit else (True, voxels, parts, max(seen))

    return min(itertools.product(*(range(1, count + 1) for count in most)), key=cost)


def _widened(core: slice, halo: int, multiple: int, end: int) -> slice:
    """A core on the extractor's grid with its halo, as far as there are voxels."""
    return slice(max(0, core.start - halo), min(end, _up(core.stop, multiple) + halo))


def _halo(extractor: Extractor) -> int:
    """The extractor's halo on its grid; wide enough that the smallest tile is legal."""
    context = 0 if extractor.halo == "global" else extractor.halo  # one tile has no neighbours
    return _up(max(context, extractor.min_size - extractor.multiple), extractor.multiple)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
