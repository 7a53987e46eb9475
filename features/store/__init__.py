"""The feature store: prepared volumes, labels and features, content-addressed, whole or not there at all.

An entry is a folder `<kind>/<key>/` that holds one Zarr v3 array and a commit record.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dropgen.errors import StoreError
from dropgen.features.store.arrays import OPEN_MAPS, map_chunk, open_array, write_array
from dropgen.features.store.entry import COMMIT, abandoned, read_commit, verify_entry, write_entry
from dropgen.features.store.features import StoredFeatures
from dropgen.features.studies.prepare import Grid, Prepared

Kind = Literal["volumes", "labels", "features"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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
        """Stores the raw features of a volume as float16, float32 or int8 (`compact.py`).

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
        return StoredFeatures.open(str(self.path("features", key)))

    def provenance(self, kind: Kind, key: str) -> dict[str, Any]:
        """Who wrote the entry, with which version, when and from which file; raises as `volume`."""
        return dict(read_commit(self.path(kind, key))["provenance"])

    def size(self, kind: Kind, key: str) -> int:
        """Bytes of the entry's committed files; raises as `volume`."""
        return sum(int(file["bytes"]) for file in read_commit(self.path(kind, key))["files"].values())

    def entries(self, kind: Kind) -> Iterator[str]:
        """The keys of all entries of one kind."""
        for record in sorted((self.folder / kind).glob(f"[!.]*/{COMMIT}")):
            yield record.parent.name

    def verify(self, kind: Kind, key: str) -> None:
        """Reads every byte of an entry again and compares it with the commit record.

        Raises:
            StoreError: A bit differs; names the entry, the case and the file.
        """
        verify_entry(self.path(kind, key))

    def sweep(self) -> int:
        """Removes what writers that no longer run left unfinished; returns how many entries that were."""
        swept = 0
        for partial in self.folder.glob("*/.*.partial"):
            if abandoned(partial):
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
        case = f"case {provenance.get('case', '?')}"
        if array.size == 0:
            raise StoreError(f"{kind}/{key} ({case}): shape {array.shape} holds no voxels")
        write_entry(
            self.path(kind, key),
            lambda folder: write_array(folder, array, chunk, dtype, attributes, case),
            provenance,
        )


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def _volume(folder: str) -> Prepared:
    shape, dtype, attributes = open_array(Path(folder))
    unit = map_chunk(f"{folder}/c.0.0.0", shape, dtype)
    return Prepared(unit, attributes["shift"], attributes["scale"], Grid.from_json(attributes["grid"]))


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def _label(folder: str) -> np.ndarray:
    shape, dtype, _ = open_array(Path(folder))
    return map_chunk(f"{folder}/c.0.0.0", shape, dtype)


def close_maps() -> None:
    """Lets go of every kept map, so that the system can forget the files' pages; a later read maps them again."""
    for kept in (_volume, _label, StoredFeatures.open, map_chunk):
        kept.cache_clear()
