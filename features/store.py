"""The feature store: prepared volumes, labels and features, content-addressed, whole or not there at all.

An entry is a folder `<kind>/<key>/` that holds one Zarr v3 array. Its chunks are not compressed, so a chunk
file is a raw array: any Zarr reader opens the entry, and this module maps the chunk files into memory.
Features have one chunk per channel, so a channel that is not asked for costs no bytes.

Writing happens in a private folder beside the entry. The commit record with every file's size and checksum
is written last, everything is flushed, and one rename publishes the entry.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import resource
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import zarr

from dropgen.errors import ResourceError, StoreError
from dropgen.features.studies.prepare import Grid, Prepared
from dropgen.manifest import digest, file_digest

Kind = Literal["volumes", "labels", "features"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COMMIT = "commit.json"
METADATA = "zarr.json"
# A mapped file holds a descriptor. A crop of 12 channels from kept maps takes a quarter of the time of new ones.
OPEN_MAPS = min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 64), 8192)
ABANDONED_SECONDS = 24 * 3600  # a partial entry of another host, whose processes cannot be seen from here
PARTIAL = re.compile(r"\.(?P<key>[^.]+)\.(?P<host>.+)\.(?P<pid>\d+)-[0-9a-f]+\.partial")


@dataclass(frozen=True)
class StoredFeatures:
    """The features of one volume, read channel by channel and crop by crop.

    Attributes:
        channels: Number of feature channels C.
        shape: Voxels of the prepared volume, [X, Y, Z].
        dtype: Type of the stored values.
        stats: `[S]` float32, what the extractor measured on the whole volume; None where it needs nothing.
    """

    channels: int
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    stats: np.ndarray | None
    _folder: str

    def read(self, channels: Sequence[int], box: tuple[slice, slice, slice]) -> np.ndarray:
        """Copies a crop of some channels, touching no byte of the others.

        Args:
            channels: Which channels, in the order of the result.
            box: Voxel ranges with NumPy's meaning.

        Returns:
            `[len(channels), x, y, z]` of the stored type.
        """
        size = [len(range(*edge.indices(length))) for edge, length in zip(box, self.shape, strict=True)]
        crop = np.empty((len(channels), *size), self.dtype)
        for row, channel in enumerate(channels):
            crop[row] = _map(f"{self._folder}/c.{range(self.channels)[channel]}.0.0.0", self.shape, self.dtype)[box]
        return crop


class FeatureStore:
    """Prepared volumes, labels and features under one folder; any number of processes may read and write.

    Args:
        folder: Where the entries live; created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: Kind, key: str) -> Path:
        """The folder of an entry, itself a Zarr v3 array."""
        return self.folder / kind / key

    def has(self, kind: Kind, key: str) -> bool:
        """Whether the entry is there, whole."""
        return (self.path(kind, key) / COMMIT).is_file()

    def put_volume(self, key: str, prepared: Prepared, provenance: Mapping[str, Any]) -> None:
        """Stores a prepared volume.

        Raises:
            StoreError: A voxel is not finite; names the case.
            ResourceError: The disk is full or the folder cannot be written; nothing is left behind.
        """
        attributes = {"shift": prepared.shift, "scale": prepared.scale, "grid": prepared.grid.to_json()}
        unit = np.asarray(prepared.unit, np.float32)
        self._put("volumes", key, unit, unit.shape, np.dtype(np.float32), attributes, provenance)

    def put_label(self, key: str, label: np.ndarray, provenance: Mapping[str, Any]) -> None:
        """Stores a label map `[X, Y, Z]` of the prepared grid as uint8; raises as `put_volume`."""
        self._put("labels", key, label, label.shape, np.dtype(np.uint8), {}, provenance)

    def put_features(
        self,
        key: str,
        features_cxyz: np.ndarray,
        stats: np.ndarray | None,
        provenance: Mapping[str, Any],
        dtype: str = "float16",
    ) -> None:
        """Stores the raw features of a volume, cast to `dtype`.

        Raises:
            StoreError: A value is not finite, or not any more in `dtype`; names the case and the channel.
            ResourceError: As `put_volume`.
        """
        attributes = {"stats": None if stats is None else np.asarray(stats, np.float32).tolist()}
        chunk = (1, *features_cxyz.shape[1:])
        self._put("features", key, features_cxyz, chunk, np.dtype(dtype), attributes, provenance)

    def volume(self, key: str) -> Prepared:
        """A prepared volume; `unit` is a read-only memory map.

        Raises:
            StoreError: The entry is missing or its files are not the ones committed.
        """
        return _volume(str(self.path("volumes", key)))

    def label(self, key: str) -> np.ndarray:
        """A label map `[X, Y, Z]`, uint8, a read-only memory map; raises as `volume`."""
        return _label(str(self.path("labels", key)))

    def features(self, key: str) -> StoredFeatures:
        """The features of a volume, nothing of them read yet; raises as `volume`."""
        return _features(str(self.path("features", key)))

    def provenance(self, kind: Kind, key: str) -> dict[str, Any]:
        """Who wrote the entry, with which version, when and from which file; raises as `volume`."""
        return dict(_commit(self.path(kind, key))["provenance"])

    def size(self, kind: Kind, key: str) -> int:
        """Bytes of the entry's committed files; raises as `volume`."""
        return sum(int(file["bytes"]) for file in _commit(self.path(kind, key))["files"].values())

    def entries(self, kind: Kind) -> Iterator[str]:
        """The keys of all entries of one kind."""
        for record in sorted((self.folder / kind).glob(f"[!.]*/{COMMIT}")):
            yield record.parent.name

    def verify(self, kind: Kind, key: str) -> None:
        """Reads every byte of an entry again and compares it with the commit record.

        Raises:
            StoreError: A bit differs; names the entry, the case and the file.
        """
        folder = self.path(kind, key)
        commit = _commit(folder)
        for name, file in commit["files"].items():
            if file_digest(folder / name) != file["blake2b"]:
                case = commit["provenance"].get("case", "?")
                raise StoreError(f"{kind}/{key} (case {case}): file {name} is damaged; {_remedy(folder)}")

    def sweep(self) -> int:
        """Removes what writers that no longer run left unfinished; returns how many entries that were."""
        swept = 0
        for partial in self.folder.glob("*/.*.partial"):
            name = PARTIAL.fullmatch(partial.name)
            if name and _abandoned(partial, name["host"], int(name["pid"])):
                shutil.rmtree(partial, ignore_errors=True)
                swept += 1
        return swept

    def _put(
        self,
        kind: Kind,
        key: str,
        array: np.ndarray,
        chunk: tuple[int, ...],
        dtype: np.dtype[Any],
        attributes: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        """Writes, commits and publishes one entry; when another writer was first, theirs stays."""
        if array.size == 0:
            raise StoreError(f"{kind}/{key} (case {provenance.get('case', '?')}): shape {array.shape} holds no voxels")
        target = self.path(kind, key)
        staging = target.with_name(_partial_name(key))
        try:
            staging.mkdir(parents=True)
            _write_zarr(staging, array, chunk, dtype, attributes, f"case {provenance.get('case', '?')}")
            _write_commit(staging, provenance)
            _publish(staging, target)
        except OSError as error:
            raise ResourceError(
                f"cannot write {kind}/{key} (case {provenance.get('case', '?')}) under {self.folder}: "
                f"{error.strerror or error}; free disk space there or choose a writable folder with --root"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _write_zarr(
    folder: Path,
    array: np.ndarray,
    chunk: tuple[int, ...],
    dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    where: str,
) -> None:
    """Writes one Zarr v3 array, one chunk at a time, so that a cast needs memory for one chunk only."""
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
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        with np.errstate(over="ignore"):
            cast = part.astype(dtype, copy=False)
        if not np.isfinite(cast).all():
            what = f"channel {start} of the features" if step == 1 and array.ndim == 4 else "the volume"
            if np.isfinite(part).all():
                high = float(np.abs(part).max())
                raise StoreError(f"{where}: {what} reaches {high:g}, too much for {dtype}; use features.dtype=float32")
            raise StoreError(f"{where}: {what} holds values that are not finite; check the image")
        target[start : start + step] = cast


def _write_commit(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Flushes every file to disk, then writes the record that makes the folder an entry."""
    files = {
        path.name: {"bytes": path.stat().st_size, "blake2b": file_digest(path)} for path in sorted(folder.iterdir())
    }
    record = {"files": files, "provenance": json.loads(json.dumps(dict(provenance), default=str))}
    (folder / COMMIT).write_text(json.dumps(record | {"seal": digest(record)}, indent=1))
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _publish(staging: Path, target: Path) -> None:
    """Renames a finished folder onto its name, where a folder with a commit record stays as it is."""
    if not (target / COMMIT).is_file():
        if target.exists():  # half deleted: a rename refuses a folder that is not empty
            aside = staging.with_name(_partial_name(target.name))
            target.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        try:
            staging.rename(target)
        except OSError:
            if not (target / COMMIT).is_file():
                raise
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_name(key: str) -> str:
    return f".{key}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.partial"


def _abandoned(partial: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        try:
            return time.time() - partial.stat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _remedy(folder: Path) -> str:
    return f"remove {folder} and run `dropgen precompute EXPERIMENT` again"


def _commit(folder: Path) -> dict[str, Any]:
    """The commit record, after comparing it with the sizes of the files that are there."""
    entry = f"{folder.parent.name}/{folder.name}"
    try:
        record: dict[str, Any] = json.loads((folder / COMMIT).read_bytes())
        seal = record.pop("seal")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"the store holds no {entry}; run `dropgen precompute EXPERIMENT`") from None
    except (ValueError, KeyError, AttributeError):
        raise StoreError(f"{entry}: file {COMMIT} is damaged; {_remedy(folder)}") from None
    if seal != digest(record):
        raise StoreError(f"{entry}: file {COMMIT} is damaged; {_remedy(folder)}")
    for name, file in record["files"].items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            size = -1
        if size != file["bytes"]:
            found = "missing" if size < 0 else f"{size} bytes long instead of {file['bytes']}"
            case = record["provenance"].get("case", "?")
            raise StoreError(f"{entry} (case {case}): file {name} is {found}; {_remedy(folder)}")
    return record


def _open(folder: str) -> tuple[tuple[int, ...], np.dtype[Any], dict[str, Any]]:
    """Shape, type and attributes of an entry. Zarr v3 metadata is JSON, read here in a tenth of Zarr's time."""
    _commit(Path(folder))
    metadata = json.loads(Path(folder, METADATA).read_bytes())
    return tuple(metadata["shape"]), np.dtype(metadata["data_type"]).newbyteorder("<"), metadata["attributes"]


@functools.lru_cache(maxsize=OPEN_MAPS)
def _map(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """One chunk file as a read-only array; `np.memmap` does the same in three times the time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return np.frombuffer(data, dtype).reshape(shape)


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def _volume(folder: str) -> Prepared:
    shape, dtype, attributes = _open(folder)
    unit = _map(f"{folder}/c.0.0.0", shape, dtype)
    return Prepared(unit, attributes["shift"], attributes["scale"], Grid.from_json(attributes["grid"]))


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def _label(folder: str) -> np.ndarray:
    shape, dtype, _ = _open(folder)
    return _map(f"{folder}/c.0.0.0", shape, dtype)


@functools.lru_cache(maxsize=4096)
def _features(folder: str) -> StoredFeatures:
    (channels, x, y, z), dtype, attributes = _open(folder)
    stats = None if attributes["stats"] is None else np.asarray(attributes["stats"], np.float32)
    return StoredFeatures(channels, (x, y, z), dtype, stats, folder)


def close_maps() -> None:
    """Lets go of every kept map, so that the system can forget the files' pages; a later read maps them again."""
    for kept in (_volume, _label, _features, _map):
        kept.cache_clear()
