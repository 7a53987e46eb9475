"""The array of an entry: written through Zarr v3, read by mapping its chunk files. The only file that knows Zarr.

Chunks are not compressed, so a chunk file is a raw array: any Zarr reader opens the entry, and a reader here
costs no more than the bytes that it touches.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dropgen.errors import StoreError
from dropgen.features.store.compact import encode
from dropgen.features.store.entry import read_commit

METADATA = "zarr.json"
# A mapped file holds a descriptor. A crop of 12 channels from kept maps takes a quarter of the time of new ones.
OPEN_MAPS = min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 64), 8192)


def write_array(
    folder: Path,
    array: np.ndarray,
    chunk: tuple[int, ...],
    dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    where: str,
) -> None:
    """Writes one Zarr v3 array, one chunk at a time, so that a cast needs memory for one chunk only.

    Args:
        folder: Becomes the Zarr array.
        array: `[X, Y, Z]` or `[C, X, Y, Z]`.
        chunk: Size of a chunk; its first axis is the step of the writing.
        dtype: Type to store; int8 stands for one byte per value with `scale` and `offset` of every chunk as attributes.
        attributes: JSON values kept with the array.
        where: Begins every complaint: `case one`.

    Raises:
        StoreError: A value is not finite, or not any more in `dtype`.
    """
    target = zarr.create_array(
        store=str(folder),
        shape=array.shape,
        chunks=chunk,
        dtype=dtype,
        compressors=None,
        filters=None,
        fill_value=0,
        attributes=dict(attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        overwrite=True,
        config={"write_empty_chunks": True},  # else a channel of zeros would have no file to map
    )
    step = chunk[0]
    affine = []
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        what = f"channel {start} of the features" if step == 1 and array.ndim == 4 else "the volume"
        if not np.isfinite(part).all():
            raise StoreError(f"{where}: {what} holds values that are not finite; check the image")
        if dtype == np.int8:
            cast, *line = encode(part)
            affine.append(line)
        else:
            with np.errstate(over="ignore"):
                cast = part.astype(dtype, copy=False)
        if not np.isfinite(cast).all():
            high = float(np.abs(part).max())
            raise StoreError(f"{where}: {what} reaches {high:g}, too much for {dtype}; use features.dtype=float32")
        target[start : start + step] = cast
    if affine:
        scale, offset = zip(*affine, strict=True)
        target.attrs.update({"scale": scale, "offset": offset})


def open_array(folder: Path) -> tuple[tuple[int, ...], np.dtype[Any], dict[str, Any]]:
    """Shape, type and attributes of an entry. Zarr v3 metadata is JSON, read here in a tenth of Zarr's time.

    Raises:
        StoreError: The entry is missing or its files are not the ones committed.
    """
    read_commit(folder)
    metadata = json.loads((folder / METADATA).read_bytes())
    return tuple(metadata["shape"]), np.dtype(metadata["data_type"]).newbyteorder("<"), metadata["attributes"]


@functools.lru_cache(maxsize=OPEN_MAPS)
def map_chunk(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """One chunk file as a read-only array; `np.memmap` does the same in three times the time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return np.frombuffer(data, dtype).reshape(shape)
