"""Copies of a remote store's entries on this machine: whole entries, as many as fit.

Training reads random crops, so an entry is fetched once and mapped from then on like a local one.
"""

from __future__ import annotations

import os

from dropgen.features.store.entry import COMMIT
from dropgen.features.store.folder import Folder
from dropgen.features.store.mapped import close_maps
from dropgen.features.store.place import KINDS, Entry

IN_USE_SECONDS = 60.0


def touch(cache: Folder, entry: Entry) -> bool:
    """Notes that a copy is read now; False where there is none."""
    try:
        os.utime(cache.at(entry) / COMMIT)
    except FileNotFoundError:
        return False
    return True


def make_room(cache: Folder, limit: int) -> None:
    """Deletes the copies that were read longest ago until the others fit.

    What was read within the last minute may be about to be mapped and stays, even where it alone is too much.

    Args:
        cache: The copies.
        limit: Bytes.
    """
    sizes = {(kind, key): size for kind in KINDS for key, size in cache.sizes(kind).items()}
    ages = {entry: cache.age(entry) for entry in sizes}
    excess = sum(sizes.values()) - limit
    for entry in sorted(sizes, key=ages.__getitem__, reverse=True):
        if excess <= 0 or ages[entry] < IN_USE_SECONDS:
            return
        if (copy := cache.hide(entry)) is not None:
            copy.erase()
            close_maps()  # a mapped file keeps its space after it is deleted
        excess -= sizes[entry]
