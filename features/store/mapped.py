"""Volumes and labels as read-only memory maps, and what this process keeps mapped."""

from __future__ import annotations

import functools

import numpy as np

from dropgen.features.store.arrays import OPEN_MAPS, map_chunk, open_array
from dropgen.features.store.features import StoredFeatures
from dropgen.features.studies.prepare import Grid, Prepared

WHOLE = "c.0.0.0"  # the one chunk of a label, or of an image of one channel


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def map_volume(folder: str) -> Prepared:
    """The prepared image of an entry's folder; raises as `open_array` and `map_chunk`."""
    attributes = open_array(folder).attributes
    unit, grid = _map(folder), Grid.from_json(attributes["grid"])
    if unit.ndim == 3:
        return Prepared(unit[None], (attributes["shift"],), (attributes["scale"],), grid)
    return Prepared(unit, tuple(attributes["shift"]), tuple(attributes["scale"]), grid)


@functools.lru_cache(maxsize=OPEN_MAPS // 4)
def map_label(folder: str) -> np.ndarray:
    """The label map `[X, Y, Z]` of an entry's folder; raises as `open_array` and `map_chunk`."""
    return _map(folder)


def highest_label(folder: str) -> int:
    """The greatest value of an entry's label map; entries written before they said so are read for it."""
    said = open_array(folder).attributes.get("highest")
    return int(map_label(folder).max() if said is None else said)


def close_maps() -> None:
    """Lets go of every kept map, so that the system can forget the files' pages; a later read maps them again."""
    for kept in (map_volume, map_label, StoredFeatures.open, open_array, map_chunk):
        kept.cache_clear()


def _map(folder: str) -> np.ndarray:
    name = WHOLE if len(open_array(folder).shape) == 3 else f"{WHOLE}.0"
    return map_chunk(f"{folder}/{name}")
