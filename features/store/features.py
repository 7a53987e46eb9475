"""The stored features of one volume, read channel by channel and crop by crop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dropgen.features.store.arrays import map_chunk, open_array
from dropgen.features.store.compact import decode


@dataclass(frozen=True)
class StoredFeatures:
    """The features of one volume; there is one chunk per channel, so a channel not asked for costs no bytes.

    Attributes:
        channels: Number of feature channels C.
        shape: Voxels of the prepared volume, [X, Y, Z].
        dtype: Type of the stored values.
        stats: `[S]` float32, what the extractor measured on the whole volume; None where it needs nothing.
        affine: `[2, C]` float32, scale and offset that turn int8 codes into values; None for floats.
    """

    channels: int
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    stats: np.ndarray | None
    affine: np.ndarray | None
    _chunks: tuple[str, ...]

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def open(cls, folder: str) -> StoredFeatures:
        """Reads an entry's record and metadata, nothing of its values; raises as `open_array`."""
        (channels, x, y, z), _, dtype, attributes, _ = open_array(folder)
        chunks = tuple(f"{folder}/c.{channel}.0.0.0" for channel in range(channels))
        stats = None if attributes["stats"] is None else np.asarray(attributes["stats"], np.float32)
        affine = None
        if dtype == np.int8:
            affine = np.asarray((attributes["scale"], attributes["offset"]), np.float32)
        return cls(channels, (x, y, z), dtype, stats, affine, chunks)

    def read(self, channels: Sequence[int], box: tuple[slice, slice, slice]) -> np.ndarray:
        """Copies a crop of some channels, touching no byte of the others.

        Args:
            channels: Which channels, in the order of the result.
            box: Voxel ranges with NumPy's meaning, of step 1.

        Returns:
            `[len(channels), x, y, z]` of the stored type; `decode` makes raw features of it.

        Raises:
            StoreError: As `map_chunk`.
        """
        of_chunk = (0, *box)
        crops_xyz = [map_chunk(self._chunks[channel])[of_chunk] for channel in channels]
        size = crops_xyz[0].shape if crops_xyz else np.broadcast_to(0, self.shape)[box].shape
        crop_cxyz = np.empty((len(crops_xyz), *size), self.dtype)
        row = _row(crop_cxyz.shape[-1] * self.dtype.itemsize)
        for rows_xy, crop_xyz in zip(crop_cxyz.view(row), crops_xyz, strict=True):
            rows_xy[:] = crop_xyz.view(row)
        return crop_cxyz

    def decode(self, stored_cxyz: Tensor, channels: Sequence[int]) -> Tensor:
        """Raw float32 features from what `read` gave for these channels, on the device where that is now."""
        if self.affine is None:
            return stored_cxyz.float()
        return decode(stored_cxyz, self.affine[:, channels])

    def whole(self) -> np.ndarray:
        """Raw float32 features `[C, X, Y, Z]` of the whole volume."""
        channels = range(self.channels)
        x, y, z = (slice(0, size) for size in self.shape)
        return self.decode(torch.from_numpy(self.read(channels, (x, y, z))), channels).numpy()


@functools.cache
def _row(size: int) -> np.dtype[Any]:
    """So many bytes as one element.

    NumPy spends more on each short row than on its bytes: a crop of 64 voxels per edge as rows of one element takes
    three quarters of the time at int8.
    """
    return np.dtype((np.void, size))
