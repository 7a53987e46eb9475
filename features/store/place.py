"""What the store asks of the place where its entries lie: a folder (`folder.py`) or an object store (`remote.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

Kind = Literal["volumes", "labels", "features"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Entry = tuple[Kind, str]


@dataclass(frozen=True)
class Hidden:
    """An entry that readers do not find any more; one of the two calls must follow.

    Attributes:
        restore: Shows it again, or erases it where another has taken its place meanwhile.
        erase: Deletes it for good.
    """

    restore: Callable[[], None]
    erase: Callable[[], None]


class Place(Protocol):
    """Whole entries by kind and key; an entry exists once its commit record does, which is written last.

    Every method may raise ResourceError where the place cannot be reached or written to.

    Attributes:
        name: What a person calls it: the folder, the URL.
        compressed: Whether the chunks of entries written here are to be compressed.
    """

    name: str
    compressed: bool

    def has(self, entry: Entry) -> bool:
        """Whether the entry is there, whole."""

    def keys(self, kind: Kind) -> list[str]:
        """The keys of all entries of one kind, in order."""

    def record(self, entry: Entry) -> dict[str, Any]:
        """The commit record; StoreError where it is missing or damaged."""

    def sizes(self, kind: Kind) -> dict[str, int]:
        """Bytes of all files of every entry of one kind, whole or damaged."""

    def age(self, entry: Entry) -> float:
        """Seconds since the entry was committed; 0 where it is not there."""

    def free(self) -> int | None:
        """Bytes that still fit; None where there is no bound."""

    def verify(self, entry: Entry) -> None:
        """Hashes every byte again; StoreError names entry, case and file where one differs from the record."""

    def write(self, entry: Entry, fill: Callable[[Path], None], provenance: Mapping[str, Any]) -> None:
        """Writes and commits an entry; where another writer was first, theirs stays.

        Args:
            entry: Kind and key.
            fill: Writes the entry's files into the empty folder that it is given.
            provenance: Who made it and of what; errors name its `case`.
        """

    def open(self, entry: Entry) -> Path:
        """A folder of this machine with the entry's files, every chunk a raw array.

        What reads the folder raises StoreError where the entry is missing or damaged, unless this did.
        """

    def hide(self, entry: Entry) -> Hidden | None:
        """Takes an entry out of readers' sight; None where it was gone already."""

    def sweep(self) -> int:
        """Removes what dead writers left unfinished; returns how many entries that were."""

    def documents(self, folder: str) -> list[str]:
        """Names of the JSON documents of a folder beside the entries, in order."""

    def read_document(self, name: str) -> bytes:
        """A document's bytes; FileNotFoundError where there is none."""

    def write_document(self, name: str, data: bytes) -> None:
        """Writes a document so that a reader sees the old one or the new one; OSError from a local disk."""
