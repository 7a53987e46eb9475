"""Entries in an object store, which knows no rename: files first, the record that names them last.

Below the store's address lie, for every entry,

    <kind>/<key>.<attempt>/    its files, an array whose chunks are compressed; one writer's, under a name of its own
    <kind>/<key>.json          the commit record, which says whose files are the entry's
    <kind>/<key>.claim         for as long as a gc decides about the entry, so that no other one does

The record is created by one conditional request, so the first of two writers stays, and neither ever touches
a file of the other. A killed writer leaves files that no record names, which `sweep` finds by their age.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from dropgen.errors import StoreError
from dropgen.features.store.arrays import unpack
from dropgen.features.store.bucket import Bucket
from dropgen.features.store.cache import make_room, touch
from dropgen.features.store.checksum import Checksum
from dropgen.features.store.entry import ABANDONED_SECONDS, describe, parse_commit, remedy, sealed, staging, unsealed
from dropgen.features.store.folder import Folder
from dropgen.features.store.place import KINDS, Entry, Hidden, Kind

RECORD, CLAIM = ".json", ".claim"
STREAMS = 8


class Remote:
    """A `Place` below the address of an object store; entries are read through copies in a local folder.

    Args:
        url: `s3://bucket/prefix`.
        cache: Folder of the copies.
        cache_bytes: How much the copies may take.
    """

    compressed = True  # a network is slower than a decoder

    def __init__(self, url: str, cache: Path, cache_bytes: int) -> None:
        self.name = url.rstrip("/")
        self._bucket = Bucket(self.name)
        self._cache = Folder(cache)
        self._cache_bytes = cache_bytes

    def has(self, entry: Entry) -> bool:
        return self._bucket.age(_record_name(entry)) is not None

    def keys(self, kind: Kind) -> list[str]:
        objects, _ = self._bucket.level(kind)
        return sorted(_key(name) for name in objects if name.endswith(RECORD))

    def record(self, entry: Entry) -> dict[str, Any]:
        data = self._bucket.get(_record_name(entry))
        if data is None:
            raise StoreError(f"{self.name} holds no {'/'.join(entry)}; run `dropgen precompute EXPERIMENT`")
        return parse_commit(data, "/".join(entry), f"{self.name}/{_record_name(entry)}")

    def sizes(self, kind: Kind) -> dict[str, int]:
        sizes = Counter[str]()
        committed = set()
        for item in self._bucket.objects(kind):
            sizes[_key(item.name)] += item.bytes
            if item.name.endswith(RECORD):
                committed.add(_key(item.name))
        return {key: sizes[key] for key in sorted(committed)}

    def age(self, entry: Entry) -> float:
        return self._bucket.age(_record_name(entry)) or 0.0

    def free(self) -> None:
        return None

    def verify(self, entry: Entry) -> None:
        record = self.record(entry)
        with staging(self._cache.at(entry), record["provenance"]) as folder:
            self._download(entry, record, folder)
        if self._cache.has(entry):
            self._cache.verify(entry)

    def write(self, entry: Entry, fill: Callable[[Path], None], provenance: Mapping[str, Any]) -> None:
        files = f"{'/'.join(entry)}.{secrets.token_hex(8)}"
        with staging(self._cache.at(entry), provenance) as folder:
            fill(folder)
            record = describe(folder, provenance) | {"folder": files}
            _each(lambda name: self._bucket.put(f"{files}/{name}", folder / name), record["files"])
        if not self._bucket.create(_record_name(entry), sealed(record)) and self.record(entry)["folder"] != files:
            self._bucket.delete(_file_names(record))

    def open(self, entry: Entry) -> Path:
        if not touch(self._cache, entry):
            record = self.record(entry)
            self._cache.write(entry, lambda folder: self._fetch(entry, record, folder), record["provenance"])
            make_room(self._cache, self._cache_bytes)
        return self._cache.at(entry)

    def hide(self, entry: Entry) -> Hidden | None:
        name, claim = _record_name(entry), f"{'/'.join(entry)}{CLAIM}"
        if not self._bucket.create(claim, b""):
            return None  # another gc has it
        data = self._bucket.get(name)
        self._bucket.delete([name] if data is not None else [claim])
        if data is None:
            return None
        gone = data

        def erase() -> None:
            with suppress(ValueError):  # else whose files they are cannot be told, and `sweep` will find them
                self._bucket.delete(_file_names(unsealed(gone)))
            self._bucket.delete([claim])

        def restore() -> None:
            if not self._bucket.create(name, gone) and self._bucket.get(name) != gone:
                return erase()  # it was computed again meanwhile
            self._bucket.delete([claim])

        return Hidden(restore, erase)

    def sweep(self) -> int:
        swept = self._cache.sweep()
        for kind in KINDS:
            objects, folders = self._bucket.level(kind)
            settled = {_key(name) for name in objects}  # by a record, or by a gc that may show one again
            writers = Counter(_key(folder) for folder in folders)
            for folder in folders:
                key = _key(folder)
                if key in settled and (writers[key] == 1 or self._files_of((kind, key)) in (folder, None)):
                    continue
                files = self._bucket.objects(folder)
                if all(file.age > ABANDONED_SECONDS for file in files):
                    self._bucket.delete([file.name for file in files])
                    swept += 1
            claims = [name for name in objects if name.endswith(CLAIM)]
            self._bucket.delete([name for name in claims if (self._bucket.age(name) or 0) > ABANDONED_SECONDS])
        return swept

    def documents(self, folder: str) -> list[str]:
        return sorted(self._bucket.level(folder)[0])

    def read_document(self, name: str) -> bytes:
        data = self._bucket.get(name)
        if data is None:
            raise FileNotFoundError(name)
        return data

    def write_document(self, name: str, data: bytes) -> None:
        self._bucket.put(name, data)

    def _files_of(self, entry: Entry) -> str | None:
        """Where an entry's files are; None where its record does not say."""
        with suppress(StoreError):
            return str(self.record(entry)["folder"])
        return None

    def _fetch(self, entry: Entry, record: Mapping[str, Any], folder: Path) -> None:
        with staging(self._cache.at(entry), record["provenance"]) as packed:
            self._download(entry, record, packed)
            unpack(packed, folder)

    def _download(self, entry: Entry, record: Mapping[str, Any], folder: Path) -> None:
        """Every file of an entry, compared with the record; StoreError names entry, case and file."""
        repair = remedy(f"{self.name}/{_record_name(entry)}")

        def download(name: str) -> None:
            there = self._bucket.download(f"{record['folder']}/{name}", folder / name)
            if not there or not Checksum.on_record(record["files"][name]).fits_file(folder / name):
                case, wrong = record["provenance"].get("case", "?"), "damaged" if there else "missing"
                raise StoreError(f"{'/'.join(entry)} (case {case}): file {name} is {wrong}; {repair}")

        _each(download, record["files"])


def _record_name(entry: Entry) -> str:
    return f"{'/'.join(entry)}{RECORD}"


def _file_names(record: Mapping[str, Any]) -> list[str]:
    return [f"{record['folder']}/{name}" for name in record["files"]]


def _key(name: str) -> str:
    """The key of the entry to which an object or a folder belongs."""
    return name.split("/")[1].partition(".")[0]


def _each(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Does the work for every name, several at a time; raises what one of them raised."""
    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(work, names):
            pass
