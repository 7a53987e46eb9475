"""How nnU-Net 2.6 and newer lays a volume out for blosc2, after `nnUNetDatasetBlosc2.comp_blosc2_params`.

Blocks are what is decompressed, chunks what is read: blocks should fit the first-level cache of one core, chunks
its share of the third level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK_BYTES = 0.8 * 32768
CHUNK_BYTES = 0.8 * 1441792
CHUNK_PATCHES = 1.5  # a chunk's edges are at most so many patches long on average


def blosc2_layout(
    shape_cxyz: Sequence[int], patch_xyz: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks `[C, X, Y, Z]` for a volume that is read in patches.

    A block starts as the patch, rounded up to powers of two, with all channels, and its edge that is longest
    against the patch is halved until it fits; a chunk starts as one block and grows along its edge of the fewest
    blocks until it is full, holds the volume, or would be too long against the patch.
    """
    channels, *volume = shape_cxyz
    block = [2 ** math.ceil(math.log2(edge)) for edge in patch_xyz]
    while channels * math.prod(block) * itemsize > BLOCK_BYTES:
        axis = max(
            (axis for axis in range(3) if block[axis] > 1), key=lambda axis: (block[axis] / patch_xyz[axis], axis)
        )
        block[axis] = min(2 ** math.floor(math.log2(block[axis] - 1)), volume[axis])
    block = [min(edge, most) for edge, most in zip(block, volume, strict=True)]
    chunk = list(block)
    while channels * math.prod(chunk) * itemsize < CHUNK_BYTES and chunk != volume:
        axis = min(
            (axis for axis in range(3) if chunk[axis] < volume[axis]), key=lambda axis: chunk[axis] / block[axis]
        )
        longer = list(chunk)
        longer[axis] = min(chunk[axis] + block[axis], volume[axis])
        if sum(edge / patch for edge, patch in zip(longer, patch_xyz, strict=True)) / 3 > CHUNK_PATCHES:
            break
        chunk = longer
    return (channels, *chunk), (channels, *block)
