"""What the store holds, for whom, and what may go."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore, Kind
from dropgen.features.store.entry import COMMIT, aside

Entry = tuple[Kind, str]
# A run whose study another run has redefined meanwhile goes on with entries that no index refers to.
FRESH_SECONDS = 3600


@dataclass(frozen=True)
class Garbage:
    """Entries that no saved index refers to.

    Attributes:
        sizes: Bytes of each entry that may go.
        spared: Entries so young that their writer may still be at work.
    """

    sizes: dict[Entry, int]
    spared: tuple[Entry, ...]


def everything(store: FeatureStore) -> list[Entry]:
    """All entries of the store."""
    return [(kind, key) for kind in KINDS for key in store.entries(kind)]


def referenced(store: FeatureStore) -> set[Entry]:
    """All entries that saved indexes refer to, in the store or not; raises as `StudyIndex.saved`."""
    return {entry for index in StudyIndex.saved(store) for entry in index.entries()}


def find_garbage(store: FeatureStore) -> Garbage:
    """What no index refers to; deletes nothing.

    Raises:
        StoreError: An index is damaged.
    """
    present = everything(store)  # before the indexes: an index is saved before its first entry
    kept = referenced(store)
    loose = [entry for entry in present if entry not in kept]
    spared = tuple(entry for entry in loose if _age(store, entry) < FRESH_SECONDS)
    return Garbage({entry: size_on_disk(store, entry) for entry in loose if entry not in spared}, spared)


def delete(store: FeatureStore, entries: Iterable[Entry]) -> list[Entry]:
    """Deletes entries that are still unreferenced, beside any number of running writers.

    Each is first hidden from readers, then the indexes are read again, and what one of them refers to by now is
    put back. A run saves its index before it looks for entries: either it is seen here, or it finds the entry
    gone and computes it.

    Returns:
        What was deleted.

    Raises:
        StoreError: An index is damaged; everything is put back.
    """
    hidden = {}
    for entry in entries:
        folder = store.path(*entry)
        with suppress(FileNotFoundError):  # another gc was faster
            hidden[entry] = folder.rename(aside(folder))
    kept = set(hidden)
    try:
        kept &= referenced(store)
    finally:
        for entry in kept:
            with suppress(OSError):  # it was computed again meanwhile
                hidden[entry].rename(store.path(*entry))
        for folder in hidden.values():
            shutil.rmtree(folder, ignore_errors=True)
    return [entry for entry in hidden if entry not in kept]


def size_on_disk(store: FeatureStore, entry: Entry) -> int:
    """Bytes of all files of an entry, whole or damaged."""
    return sum(path.stat().st_size for path in store.path(*entry).iterdir())


def per_kind(sizes: Iterable[tuple[Entry, int]]) -> dict[Kind, int]:
    """Sums over the entries of each kind."""
    total = Counter[Kind]()
    for (kind, _), size in sizes:
        total[kind] += size
    return {kind: total[kind] for kind in KINDS}


def _age(store: FeatureStore, entry: Entry) -> float:
    with suppress(FileNotFoundError):
        return time.time() - (store.path(*entry) / COMMIT).stat().st_mtime
    return 0.0
