"""Series on their way in, as folders: what was accepted is on disk before that is said, and outlives the process.

`incoming/<SeriesInstanceUID>/<SOPInstanceUID>.dcm` while slices arrive, `ready/<SeriesInstanceUID>` once none has come
for the quiet time, `quarantine/<SeriesInstanceUID>` with its cause where no mask could be made. One rename leads from
each to the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropgen.errors import ConfigError, TooLargeError, VolumeError
from dropgen.features.studies.dicom_tree import LEGAL_UID
from dropgen.manifest import read_json, write_json
from dropgen.serving.series import MAX_MEMBERS

RECORD, CAUSE, LOCK = ".record.json", "cause.txt", "lock"
MAX_ATTEMPTS = 3  # a series that took three listeners with it is not given a fourth


@dataclass(frozen=True)
class Bounds:
    """What a spool takes.

    Attributes:
        instances: Of a series.
        series_bytes: Of a series.
        series: That arrive or wait.
        free_bytes: That the disk must keep.
    """

    instances: int = MAX_MEMBERS
    series_bytes: int = 2**33
    series: int = 1000
    free_bytes: int = 2**30


class Spool:
    """All series below one folder, of one listener.

    Args:
        folder: Made when new.
        bounds: Where to stop.

    Raises:
        ConfigError: Another listener has the folder.
    """

    def __init__(self, folder: Path, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._incoming, self._ready, self._quarantine = (folder / name for name in ("incoming", "ready", "quarantine"))
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[str, int]] = defaultdict(dict)  # of the slices of each incoming series
        for place in (self._incoming, self._ready, self._quarantine):
            place.mkdir(parents=True, exist_ok=True)
        self._held = (folder / LOCK).open("a")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another listener works on {folder}; stop it, or give this one a --root") from None
        for series in self._incoming.iterdir():
            for half in series.glob(".*.partial"):  # of a listener that was killed; its sender was told nothing
                half.unlink()
            self._sizes[series.name] = {file.stem: file.stat().st_size for file in series.glob("*.dcm")}
            os.utime(series)  # the sender that lost us gets the quiet time to come back

    def put(self, series: str, instance: str, content: bytes, sender: str) -> None:
        """Keeps one slice; the same one again replaces it.

        Raises:
            VolumeError: A UID is none.
            TooLargeError: A bound; the series that crosses it ends in quarantine.
            OSError: It cannot be written.
        """
        if not (LEGAL_UID.fullmatch(series) and LEGAL_UID.fullmatch(instance)):
            raise VolumeError("a UID is none, and could not be a name")
        folder = self._incoming / series
        with self._lock:
            self._require_room(folder, instance, len(content), sender)
            partial = folder / f".{instance}.partial"
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(folder / f"{instance}.dcm")
            self._sizes[series][instance] = len(content)

    def _require_room(self, folder: Path, instance: str, more: int, sender: str) -> None:
        if shutil.disk_usage(self._incoming).free - more < self._bounds.free_bytes:
            raise TooLargeError("the disk is full")
        if not folder.is_dir():
            if sum(1 for place in (self._incoming, self._ready) for _ in place.iterdir()) >= self._bounds.series:
                raise TooLargeError(f"{self._bounds.series} series wait already")
            folder.mkdir()
            write_json(folder / RECORD, {"from": sender})
        record = read_json(folder / RECORD) or {"from": sender}
        if "cause" in record:
            raise TooLargeError(record["cause"])
        sizes = self._sizes[folder.name] | {instance: more}
        if len(sizes) > self._bounds.instances or sum(sizes.values()) > self._bounds.series_bytes:
            cause = f"it has more than {self._bounds.instances} slices or {self._bounds.series_bytes} bytes"
            write_json(folder / RECORD, record | {"cause": cause})
            raise TooLargeError(cause)

    def settle(self, quiet: float) -> None:
        """Takes every series as complete of which nothing has come for so many seconds.

        Slices of a series in quarantine join those that are there, so one that arrives late can still heal it.
        """
        with self._lock:
            for folder in list(self._incoming.iterdir()):
                waits = time.time() - folder.stat().st_mtime < quiet
                if waits or (self._ready / folder.name).exists():  # the part that came before is being worked on
                    continue
                for slice_ in (self._quarantine / folder.name).glob("*.dcm"):
                    if not (folder / slice_.name).exists():
                        slice_.rename(folder / slice_.name)
                shutil.rmtree(self._quarantine / folder.name, ignore_errors=True)
                folder.rename(self._ready / folder.name)
                self._sizes.pop(folder.name, None)

    def ready(self) -> list[Path]:
        """Complete series, the oldest first."""
        return sorted(self._ready.iterdir(), key=lambda folder: folder.stat().st_mtime)

    def begin(self, folder: Path) -> dict[str, Any]:
        """The record of a series that is worked on now, which counts how often that was.

        Raises:
            VolumeError: It crossed a bound, or no listener has outlived it.
        """
        record = dict(read_json(folder / RECORD) or {"from": ""})
        attempts = record.get("attempts", 0)
        if attempts >= MAX_ATTEMPTS:
            raise VolumeError(f"the listener died {MAX_ATTEMPTS} times at this series")
        if "cause" in record:
            raise VolumeError(record["cause"])
        modified = folder.stat().st_mtime
        write_json(folder / RECORD, record | {"attempts": attempts + 1})
        os.utime(folder, (modified, modified))
        return record

    def outlived(self, folder: Path, record: dict[str, Any]) -> None:
        """Notes that the attempt which `begin` counted has killed nobody."""
        write_json(folder / RECORD, record | {"attempts": 0})

    def finish(self, folder: Path) -> None:
        """Removes the slices of a series that has its result."""
        shutil.rmtree(folder)

    def quarantine(self, folder: Path, cause: str) -> None:
        """Puts a series aside, with its cause beside its slices."""
        (folder / RECORD).unlink(missing_ok=True)
        (folder / CAUSE).write_text(cause + "\n")
        place = self._quarantine / folder.name
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
