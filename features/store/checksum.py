"""What a commit record says of a file's bytes, and which files this process has found to be as it says.

XXH3 finds damage, not forgery: whoever can write an entry's files can write its record as well.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

ALGORITHM = "xxh3_128"  # a chunk is hashed by every process that maps it: what that costs is in docs/feature-store.md
_HASHERS: Mapping[str, Callable[..., Any]] = {
    ALGORITHM: xxhash.xxh3_128,
    "blake2b": functools.partial(hashlib.blake2b, digest_size=16),  # records of format 1
}
_compared: set[tuple[int, int, int, int, Checksum]] = set()


class Checksum(NamedTuple):
    """Of one file.

    Attributes:
        algorithm: "xxh3_128" or "blake2b".
        digest: 32 hexadecimal digits.
    """

    algorithm: str
    digest: str

    @classmethod
    def on_record(cls, file: Mapping[str, Any]) -> Checksum:
        """The one that a commit record has of a file."""
        (algorithm,) = _HASHERS.keys() & file.keys()
        return cls(algorithm, file[algorithm])

    def fits(self, data: Any) -> bool:
        """Whether these are the bytes, given as `bytes` or any other buffer."""
        return bool(_HASHERS[self.algorithm](data).hexdigest() == self.digest)

    def fits_file(self, path: Path) -> bool:
        """The same, a file being read piece by piece."""
        return _digest(path, self.algorithm) == self.digest

    def fits_mapped(self, data: Any, status: os.stat_result) -> bool:
        """As `fits`, for a file that is mapped: read once per process, as long as it is the same file, unchanged."""
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, self)
        if stamp not in _compared:
            if not self.fits(data):
                return False
            _compared.add(stamp)
        return True


def describe_file(path: Path) -> dict[str, Any]:
    """What a commit record says of a file: `bytes` and, under its algorithm's name, the checksum."""
    return {"bytes": path.stat().st_size, ALGORITHM: _digest(path, ALGORITHM)}


def forget_comparisons() -> None:
    """Has every file compared again when it is mapped next, as in a new process."""
    _compared.clear()


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _HASHERS[algorithm]).hexdigest()
