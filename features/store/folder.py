"""Entries in a folder of this machine, or of a file system that it mounts."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dropgen.features.store.entry import COMMIT, abandoned, aside, read_commit, verify_entry, write_entry
from dropgen.features.store.place import Entry, Hidden, Kind
from dropgen.manifest import write_bytes


class Folder:
    """A `Place` where an entry is the folder `<kind>/<key>/`; any number of processes may read and write.

    Args:
        path: Created by the first write.
    """

    compressed = False  # so that a chunk can be mapped

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def at(self, entry: Entry) -> Path:
        """The folder of an entry, there or not."""
        kind, key = entry
        return self.path / kind / key

    def has(self, entry: Entry) -> bool:
        return (self.at(entry) / COMMIT).is_file()

    def keys(self, kind: Kind) -> list[str]:
        return sorted(record.parent.name for record in (self.path / kind).glob(f"[!.]*/{COMMIT}"))

    def record(self, entry: Entry) -> dict[str, Any]:
        return read_commit(self.at(entry))

    def sizes(self, kind: Kind) -> dict[str, int]:
        found = {}
        for key in self.keys(kind):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found[key] = sum(path.stat().st_size for path in self.at((kind, key)).iterdir())
        return found

    def age(self, entry: Entry) -> float:
        with suppress(FileNotFoundError):
            return time.time() - (self.at(entry) / COMMIT).stat().st_mtime
        return 0.0

    def free(self) -> int:
        return shutil.disk_usage(next(path for path in (self.path, *self.path.parents) if path.is_dir())).free

    def verify(self, entry: Entry) -> None:
        verify_entry(self.at(entry))

    def write(self, entry: Entry, fill: Callable[[Path], None], provenance: Mapping[str, Any]) -> None:
        write_entry(self.at(entry), fill, provenance)

    def open(self, entry: Entry) -> Path:
        return self.at(entry)

    def hide(self, entry: Entry) -> Hidden | None:
        folder = self.at(entry)
        try:
            hidden = folder.rename(aside(folder))
        except FileNotFoundError:
            return None
        erase = functools.partial(shutil.rmtree, hidden, ignore_errors=True)

        def restore() -> None:
            try:
                hidden.rename(folder)
            except OSError:  # it was computed again meanwhile
                erase()

        return Hidden(restore, erase)

    def sweep(self) -> int:
        dead = [partial for partial in self.path.glob("*/.*.partial") if abandoned(partial)]
        for partial in dead:
            shutil.rmtree(partial, ignore_errors=True)
        return len(dead)

    def documents(self, folder: str) -> list[str]:
        return sorted(f"{folder}/{path.name}" for path in (self.path / folder).glob("[!.]*.json"))

    def read_document(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write_document(self, name: str, data: bytes) -> None:
        write_bytes(self.path / name, data)
