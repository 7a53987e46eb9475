"""How an entry of the store comes to be: whole or not at all.

Writing happens in a private folder beside the entry. The commit record with every file's size and checksum
is written last, everything is flushed, and one rename publishes the entry.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dropgen.errors import ResourceError, StoreError
from dropgen.features.store.checksum import Checksum, describe_file
from dropgen.manifest import digest

COMMIT = "commit.json"
FORMAT = 2  # raise it when files or record are laid out in another way
READABLE = (1, FORMAT)  # format 1 has another checksum
ABANDONED_SECONDS = 24 * 3600  # a partial entry of another host, whose processes cannot be seen from here
CASE = re.compile(rb'"case": "([^"]+)"')
PARTIAL = re.compile(r"\.(?P<key>[^.]+)\.(?P<host>.+)\.(?P<pid>\d+)-[0-9a-f]+\.partial")


def write_entry(target: Path, fill: Callable[[Path], None], provenance: Mapping[str, Any]) -> None:
    """Writes, commits and publishes one entry; when another writer was first, theirs stays.

    Args:
        target: The entry's folder, `<store>/<kind>/<key>`.
        fill: Writes the entry's files into the folder that it is given.
        provenance: Who made it and of what; errors name its `case`.

    Raises:
        ResourceError: As `staging`.
    """
    with staging(target, provenance) as folder:
        fill(folder)
        _write_commit(folder, provenance)
        _publish(folder, target)


@contextlib.contextmanager
def staging(target: Path, provenance: Mapping[str, Any]) -> Iterator[Path]:
    """A private folder beside an entry, gone afterwards whatever happens.

    Raises:
        ResourceError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = aside(target)
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise ResourceError(
            f"cannot write {target.parent.name}/{target.name} (case {provenance.get('case', '?')}) under "
            f"{target.parents[1]}: {error.strerror or error}; free disk space there or choose a writable folder "
            "with --root"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_commit(folder: Path) -> dict[str, Any]:
    """The commit record of an entry, after comparing it with the sizes of the files that are there.

    Returns:
        `files`: bytes and checksum of each by name; `provenance`.

    Raises:
        StoreError: There is no entry, or its record or a file is damaged; names the file and the case.
    """
    record = _read_record(folder)
    for name, file in record["files"].items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            size = -1
        if size != file["bytes"]:
            raise damage(folder, name, "missing" if size < 0 else f"{size} bytes long instead of {file['bytes']}")
    return record


def verify_entry(folder: Path) -> None:
    """Reads every byte of an entry again and compares it with the commit record.

    Raises:
        StoreError: A bit differs; names the entry, the case and the file.
    """
    for name, file in read_commit(folder)["files"].items():
        if not Checksum.on_record(file).fits_file(folder / name):
            raise damage(folder, name)


def damage(folder: Path, name: str, how: str = "damaged") -> StoreError:
    """What to raise about a file of an entry; names the entry, the case, the file and the remedy."""
    case = _read_record(folder)["provenance"].get("case", "?")
    return StoreError(f"{_name(folder)} (case {case}): file {name} is {how}; {remedy(folder)}")


def aside(target: Path) -> Path:
    """A new name beside an entry that no reader looks at and that `abandoned` can judge."""
    return target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def abandoned(partial: Path) -> bool:
    """Whether a folder named by `aside` belongs to a process that no longer runs."""
    name = PARTIAL.fullmatch(partial.name)
    if name is None:
        return False
    if name["host"] != socket.gethostname():
        try:
            return time.time() - partial.stat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:
            return False
    try:
        os.kill(int(name["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def parse_commit(data: bytes, entry: str, place: object) -> dict[str, Any]:
    """The record in the bytes of a commit record.

    Args:
        data: What `sealed` made of what `describe` said.
        entry: What the entry is called, `<kind>/<key>`.
        place: What has to be removed where it is damaged.

    Raises:
        StoreError: A bit differs, or a later version wrote it in a way that this one does not know.
    """
    try:
        record = unsealed(data)
    except ValueError:
        case = CASE.search(data)
        told = f", which tells of case {case[1].decode(errors='replace')}," if case else ""
        raise StoreError(f"{entry}: its commit record{told} is damaged; {remedy(place)}") from None
    if (found := record.get("format", FORMAT)) not in READABLE:
        raise StoreError(
            f"{entry} was written by dropgen {record['provenance'].get('version', '?')} in format {found} and this "
            f"version reads formats {READABLE[0]} to {FORMAT}; install that version, or choose another store with "
            "features.store"
        )
    return record


def describe(folder: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a commit record says: the format, bytes and checksum of every file of the folder, and the provenance."""
    files = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    plain = json.loads(json.dumps(dict(provenance), default=str))
    return {"format": FORMAT, "files": files, "provenance": plain}


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON, with a hash over itself."""
    return json.dumps(dict(record) | {"seal": digest(record)}, indent=1).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record that `sealed` wrote; ValueError where a bit differs."""
    try:
        record: dict[str, Any] = json.loads(data)
        seal = record.pop("seal")
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError("it bears no seal") from error
    if seal != digest(record):
        raise ValueError("its seal is broken")
    return record


def remedy(place: object) -> str:
    """What to do about a damaged entry."""
    return f"remove {place} and run `dropgen precompute EXPERIMENT` again"


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _read_record(folder: Path) -> dict[str, Any]:
    """The commit record of an entry, whatever the state of its files; raises as `read_commit`."""
    try:
        data = (folder / COMMIT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"the store holds no {_name(folder)}; run `dropgen precompute EXPERIMENT`") from None
    return parse_commit(data, _name(folder), folder)


def _write_commit(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Writes the record that makes the folder an entry, and flushes every file to disk."""
    (folder / COMMIT).write_bytes(sealed(describe(folder, provenance)))
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _publish(staging: Path, target: Path) -> None:
    """Renames a finished folder onto its name, where a whole entry stays as it is.

    The rename comes first and the looking afterwards: an entry that another writer publishes between a look and a
    rename would else be taken for half of one and removed.
    """
    while True:
        try:
            staging.rename(target)
            break
        except OSError as error:  # a rename refuses a name that a folder with files has
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if (target / COMMIT).is_file():
                break
            _clear(target)
    _flush(target.parent)


def _clear(target: Path) -> None:
    """Empties half a deleted entry, by its descriptor: an entry that takes its name meanwhile is not touched."""
    with contextlib.suppress(FileNotFoundError):  # another writer was first
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listdir(descriptor)  # noqa: PTH208 - pathlib knows no descriptors
            for name in () if COMMIT in names else names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
