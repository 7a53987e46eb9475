"""The array of an entry: written through Zarr v3, read by mapping its chunk files. The only file that knows Zarr.

In a folder chunks are not compressed, so a chunk file is a raw array: any Zarr reader opens the entry, and a reader
here costs no more than the bytes that it touches. On its way to and in an object store a chunk is compressed.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dropgen.errors import StoreError
from dropgen.features.store.checksum import Checksum
from dropgen.features.store.compact import encode
from dropgen.features.store.entry import damage, read_commit

METADATA = "zarr.json"
COMPRESSOR = ZstdCodec(level=1)  # what it saves: docs/feature-store.md
# A mapped file holds a descriptor. A crop of 12 channels from kept maps takes a quarter of the time of new ones.
OPEN_MAPS = min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 64), 8192)


class OpenArray(NamedTuple):
    """What an entry says of its array, nothing of its values read.

    Attributes:
        shape: `[X, Y, Z]`, or with channels before these.
        chunk: Shape of each chunk file, of as many axes.
        dtype: Type of the stored values.
        attributes: As they were given to `write_array`.
        checksums: Of every file, by its name.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: dict[str, Any]
    checksums: dict[str, Checksum]


def write_array(
    folder: Path,
    array: np.ndarray,
    chunk: tuple[int, ...],
    dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    where: str,
    compressed: bool = False,
) -> None:
    """Writes one Zarr v3 array, one chunk at a time, so that a cast needs memory for one chunk only.

    Args:
        folder: Becomes the Zarr array.
        array: `[X, Y, Z]` or `[C, X, Y, Z]`.
        chunk: Size of a chunk; its first axis is the step of the writing.
        dtype: Type to store; int8 stands for one byte per value with `scale` and `offset` of every chunk as attributes.
        attributes: JSON values kept with the array.
        where: Begins every complaint: `case one`.
        compressed: Whether chunks are compressed, so that they have to be unpacked before they are mapped.

    Raises:
        StoreError: A value is not finite, or not any more in `dtype`, or not a whole number that it holds.
    """
    target = _create(folder, array.shape, chunk, dtype, attributes, compressed)
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
        if dtype.kind == "u" and not np.array_equal(cast, part):
            raise StoreError(f"{where}: {what} holds values outside 0..{np.iinfo(dtype).max}")
        if not np.isfinite(cast).all():
            high = float(np.abs(part).max())
            raise StoreError(f"{where}: {what} reaches {high:g}, too much for {dtype}; use features.dtype=float32")
        target[start : start + step] = cast
    if affine:
        scale, offset = zip(*affine, strict=True)
        target.attrs.update({"scale": scale, "offset": offset})


def unpack(packed: Path, folder: Path) -> None:
    """Writes an array with compressed chunks again, with raw ones; folder by folder the same array.

    Args:
        packed: What `write_array` wrote.
        folder: Becomes the Zarr array whose chunk files can be mapped.
    """
    source = zarr.open_array(store=str(packed), mode="r")
    target = _create(folder, source.shape, source.chunks, source.dtype, source.attrs.asdict(), compressed=False)
    step = source.chunks[0]
    for start in range(0, source.shape[0], step):
        target[start : start + step] = source[start : start + step]


@functools.lru_cache(maxsize=4096)
def open_array(folder: str) -> OpenArray:
    """Opens an entry. Zarr v3 metadata is JSON, read here in a tenth of Zarr's time.

    Raises:
        StoreError: The entry is missing, a file has another size than was committed, or the metadata are damaged.
    """
    place = Path(folder)
    files = read_commit(place)["files"]
    checksums = {name: Checksum.on_record(file) for name, file in files.items()}
    data = (place / METADATA).read_bytes()
    if not checksums[METADATA].fits(data):
        raise damage(place, METADATA)
    metadata = json.loads(data)
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return OpenArray(tuple(metadata["shape"]), tuple(chunk), dtype, metadata["attributes"], checksums)


@functools.lru_cache(maxsize=OPEN_MAPS)
def map_chunk(path: str) -> np.ndarray:
    """One chunk file as a read-only array; `np.memmap` does the same in three times the time.

    Its bytes are compared with the entry's record when this process maps it for the first time. The path is all of
    the key: a key of several parts is hashed at every read, which a crop of few channels notices.

    Args:
        path: The file in an entry's folder.

    Returns:
        Of the chunk's shape.

    Raises:
        StoreError: As `open_array`; or a bit differs, or the file is gone; names the entry, the case and the file.
    """
    folder, name = os.path.split(path)
    array = open_array(folder)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise damage(Path(folder), name, "missing") from None
    try:
        status = os.fstat(descriptor)
        data: mmap.mmap | bytes = b""
        if status.st_size:  # no map can be empty
            data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    if not array.checksums[name].fits_mapped(data, status):
        raise damage(Path(folder), name)
    return np.frombuffer(data, array.dtype).reshape(array.chunk)


def _create(
    folder: Path,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    compressed: bool,
) -> zarr.Array[Any]:
    return zarr.create_array(
        store=str(folder),
        shape=shape,
        chunks=chunk,
        dtype=dtype,
        compressors=COMPRESSOR if compressed else None,
        filters=None,
        fill_value=0,
        attributes=dict(attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        overwrite=True,
        config={"write_empty_chunks": True},  # else a channel of zeros would have no file to map
    )
