"""What the store holds, for whom, and what may go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, Entry, FeatureStore, Kind

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


def referenced(store: FeatureStore) -> set[Entry]:
    """All entries that saved indexes refer to, in the store or not; raises as `StudyIndex.saved`."""
    return {entry for index in StudyIndex.saved(store) for entry in index.entries()}


def find_garbage(store: FeatureStore) -> Garbage:
    """What no index refers to; deletes nothing.

    Raises:
        StoreError: An index is damaged.
    """
    sizes = store.sizes()  # before the indexes: an index is saved before its first entry
    kept = referenced(store)
    loose = [entry for entry in sizes if entry not in kept]
    spared = tuple(entry for entry in loose if store.place.age(entry) < FRESH_SECONDS)
    return Garbage({entry: sizes[entry] for entry in loose if entry not in spared}, spared)


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
    hidden = {entry: taken for entry in entries if (taken := store.place.hide(entry)) is not None}
    kept = set(hidden)
    try:
        kept &= referenced(store)
    finally:
        for entry, taken in hidden.items():
            if entry in kept:
                taken.restore()
            else:
                taken.erase()
    return [entry for entry in hidden if entry not in kept]


def per_kind(sizes: Iterable[tuple[Entry, int]]) -> dict[Kind, int]:
    """Sums over the entries of each kind."""
    total = Counter[Kind]()
    for (kind, _), size in sizes:
        total[kind] += size
    return {kind: total[kind] for kind in KINDS}
