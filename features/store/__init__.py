"""The feature store: prepared volumes, labels and features, content-addressed, whole or not there at all.

An entry is one Zarr v3 array and a commit record, in a folder or below the address of an object store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dropgen.config import Features
from dropgen.errors import StoreError
from dropgen.features.store.arrays import write_array
from dropgen.features.store.checksum import forget_comparisons
from dropgen.features.store.features import StoredFeatures
from dropgen.features.store.folder import Folder
from dropgen.features.store.mapped import close_maps, highest_label, map_label, map_volume
from dropgen.features.store.place import KINDS, Entry, Kind, Place
from dropgen.features.store.remote import Remote
from dropgen.features.studies.prepare import Prepared
from dropgen.manifest import digest

__all__ = ["KINDS", "Entry", "FeatureStore", "Kind", "StoredFeatures", "close_maps", "forget_comparisons"]


class FeatureStore:
    """Prepared volumes, labels and features in one place; any number of processes may read and write.

    Args:
        folder: Of this machine; created by the first write.
        place: Where the entries lie; the folder itself where it is None.
        remembers: Whether hashes of source files are kept in the folder; without, who only looks leaves no trace.
    """

    def __init__(self, folder: Path, place: Place | None = None, *, remembers: bool = True) -> None:
        self.folder = folder
        self.remembers = remembers
        self.place: Place = Folder(folder) if place is None else place

    @classmethod
    def of(cls, features: Features, root: Path, *, remembers: bool = True) -> FeatureStore:
        """The store that an experiment names; an object store is read through copies in `<root>/cache`."""
        where = features.store
        if where is None:
            return cls(root / "store", remembers=remembers)
        if "://" not in where:
            return cls(Path(where), remembers=remembers)
        cache = root / "cache" / digest(where)
        return cls(cache, Remote(where, cache, round(features.cache_gb * 1e9)), remembers=remembers)

    @property
    def location(self) -> str:
        """What a person calls the store: its folder or its URL."""
        return self.place.name

    def path(self, kind: Kind, key: str) -> Path:
        """The folder of an entry or of its copy, itself a Zarr v3 array, there or not."""
        return self.folder / kind / key

    def has(self, kind: Kind, key: str) -> bool:
        """Whether the entry is there, whole."""
        return self.place.has((kind, key))

    def put_volume(self, key: str, prepared: Prepared, provenance: Mapping[str, Any]) -> None:
        """Stores a prepared image, of one channel as `[X, Y, Z]` with one shift and scale, else as `[M, X, Y, Z]`.

        Raises:
            StoreError: A voxel is not finite; names the case.
            ResourceError: The disk is full, or the place cannot be written or reached; nothing is left behind.
        """
        unit, shift, scale = np.asarray(prepared.unit, np.float32), prepared.shift, prepared.scale
        one = len(unit) == 1
        attributes = {
            "shift": shift[0] if one else shift, "scale": scale[0] if one else scale, "grid": prepared.grid.to_json()
        }  # fmt: skip
        unit = unit[0] if one else unit
        self._put("volumes", key, unit, unit.shape, np.dtype(np.float32), attributes, provenance)

    def put_label(self, key: str, label: np.ndarray, provenance: Mapping[str, Any]) -> None:
        """Stores a label map `[X, Y, Z]` of the prepared grid as uint8; raises as `put_volume`."""
        attributes = {"highest": int(label.max(initial=0))}
        self._put("labels", key, label, label.shape, np.dtype(np.uint8), attributes, provenance)

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
        return map_volume(str(self.place.open(("volumes", key))))

    def label(self, key: str) -> np.ndarray:
        """A label map `[X, Y, Z]`, uint8, a read-only memory map; raises as `volume`."""
        return map_label(str(self.place.open(("labels", key))))

    def highest_label(self, key: str) -> int:
        """The greatest value of a label map, without reading the map; raises as `volume`."""
        return highest_label(str(self.place.open(("labels", key))))

    def features(self, key: str) -> StoredFeatures:
        """The features of a volume, nothing of them read yet; raises as `volume`."""
        return StoredFeatures.open(str(self.place.open(("features", key))))

    def provenance(self, kind: Kind, key: str) -> dict[str, Any]:
        """Who wrote the entry, with which version, when and from which file; raises as `volume`."""
        return dict(self.place.record((kind, key))["provenance"])

    def entries(self, kind: Kind) -> list[str]:
        """The keys of all entries of one kind."""
        return self.place.keys(kind)

    def everything(self) -> list[Entry]:
        """All entries of the store."""
        return [(kind, key) for kind in KINDS for key in self.entries(kind)]

    def sizes(self) -> dict[Entry, int]:
        """Bytes of all files of every entry, whole or damaged."""
        return {(kind, key): size for kind in KINDS for key, size in self.place.sizes(kind).items()}

    def verify(self, kind: Kind, key: str) -> None:
        """Reads every byte of an entry again and compares it with the commit record.

        Raises:
            StoreError: A bit differs; names the entry, the case and the file.
        """
        self.place.verify((kind, key))

    def sweep(self) -> int:
        """Removes what writers that no longer run left unfinished; returns how many entries that were."""
        return self.place.sweep()

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
        self.place.write(
            (kind, key),
            lambda folder: write_array(folder, array, chunk, dtype, attributes, case, self.place.compressed),
            provenance,
        )
