"""A series that somebody sent, read in a process of its own with limits: a hostile one kills that process alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dropgen import memory
from dropgen.platform.evaluation.memory import READING_BYTES
from dropgen.serving.cases import Loaded, Scan
from dropgen.serving.decode import Wanted, decode

NAME = "the series"
PLACE = ".read"  # in the series' folder, which has room for it and goes with it


@dataclass(frozen=True)
class ReadApart:
    """Reads series from a spool, of which nothing but UIDs and bytes is known.

    Attributes:
        derived: Whether series that were computed from others are segmented too.
    """

    derived: bool = False

    @contextmanager
    def __call__(self, scan: Scan) -> Iterator[Loaded]:
        """Gives what the reader made of a scan, for the block.

        Raises:
            VolumeError: It cannot be segmented, or makes no regular grid; names the slice.
            TooLargeError: Reading it takes more memory or time than such files may.
        """
        size = sum(path.stat().st_size for path in scan.paths)
        voxels = min(size, memory.available() // READING_BYTES)  # uncompressed: no more voxels than bytes
        place = scan.paths[0].parent / PLACE
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        place.mkdir()
        try:
            wanted = Wanted(place.parent, place / "voxels.npy", voxels, size, place / "headers", self.derived, NAME)
            read = decode(wanted)
            yield Loaded((read.volume,), read.modality, read.slices)
        finally:
            shutil.rmtree(place, ignore_errors=True)
