"""Jobs as folders: what was accepted is on disk before it is answered, and outlives every process.

`<id>/volume.nii`, `<id>/job.json`, and when it is done `<id>/mask.nii.gz` or `<id>/mask.dcm` with `<id>/mask.png`, and
the maps `mask.entropy.nii.gz` and `mask.disagreement.nii.gz` where they were asked for. Who works on a job holds the
lock on `<id>/lock`; the kernel takes it back when that process dies, however it dies, and the next one goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dropgen.errors import DropGenError
from dropgen.manifest import read_json, write_json
from dropgen.serving.quality import DISAGREEMENT, ENTROPY, PREVIEW, remove_beside

ID = re.compile(r"[0-9a-f]{32}")
UNFINISHED = ("accepted", "running")
MAX_ATTEMPTS = 3  # a job that took three replicas with it is not given a fourth
VOLUME, MASK, DICOM_MASK = "volume.nii", "mask.nii.gz", "mask.dcm"
PARTS = {"preview": PREVIEW, "entropy": ENTROPY, "disagreement": DISAGREEMENT}
RECORD, LOCK, CANCEL = "job.json", "lock", "cancel"


class UnknownJobError(DropGenError):
    """No such job, or not this client's."""


class CancelledError(DropGenError):
    """Nobody wants this job's mask any more."""


class Jobs:
    """All jobs below one folder, which all replicas see.

    Args:
        folder: Made when new.
        keep_seconds: How long a finished job is kept.
    """

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._keep_seconds = keep_seconds

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to put a volume in; gone afterwards unless `accept` took it."""
        draft = self._folder / f".{secrets.token_hex(16)}.partial"
        draft.mkdir()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def accept(self, draft: Path, who: str, key: str | None, fields: dict[str, Any]) -> dict[str, Any]:
        """Makes a draft a job; with a key that its owner has used before, gives that job instead.

        Args:
            draft: From `draft`, with the volume in it.
            who: Its owner.
            key: The client's name for the job, so that a retried request is no second job.
            fields: Kept with it.
        """
        identity = secrets.token_hex(16) if key is None else hashlib.sha256(f"{who}\0{key}".encode()).hexdigest()[:32]
        now = time.time()
        record = {
            "id": identity, "state": "accepted", "who": who, "accepted": now, "changed": now, "attempts": 0, **fields,
        }  # fmt: skip
        write_json(draft / RECORD, record)
        try:
            draft.rename(self._folder / identity)  # in one step, and refused where the job exists
        except OSError:
            if (known := read_json(self._folder / identity / RECORD)) is None:
                raise
            return dict(known)
        descriptor = os.open(self._folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return record

    def read(self, identity: str, who: str) -> dict[str, Any]:
        """The record of a job.

        Raises:
            UnknownJobError: There is none of this id that belongs to `who`.
        """
        record = read_json(self._folder / identity / RECORD) if ID.fullmatch(identity) else None
        if record is None or record["who"] != who:  # another's job looks like none
            raise UnknownJobError("there is no such job, or it has expired; send the volume again")
        return dict(record)

    def mask(self, identity: str, who: str) -> bytes:
        """The mask of a job that is done.

        Raises:
            UnknownJobError: There is no such job.
        """
        record = self.read(identity, who)
        try:
            return (self._folder / identity / mask_name(record)).read_bytes()
        except FileNotFoundError:
            raise UnknownJobError("the job has no mask; ask for its state first") from None

    def beside(self, identity: str, who: str, part: str) -> bytes | None:
        """One of `PARTS` of a job that is done; None where it has none.

        Raises:
            UnknownJobError: There is no such job.
        """
        self.read(identity, who)
        try:
            return (self._folder / identity / f"mask{PARTS[part]}").read_bytes()
        except FileNotFoundError:
            return None

    def cancel(self, identity: str, who: str) -> dict[str, Any]:
        """Cancels a job: at once, or, where a replica is at it, at its next window.

        Raises:
            UnknownJobError: There is no such job.
        """
        self.read(identity, who)
        folder = self._folder / identity
        (folder / CANCEL).touch()
        with _locked(folder) as mine:
            if mine and self.read(identity, who)["state"] in UNFINISHED:
                return self.finish(folder, "cancelled")
        return self.read(identity, who)

    @contextmanager
    def claim(self) -> Iterator[Path | None]:
        """The oldest unfinished job that nobody works on, held until the end of the block; None where there is none."""
        for _, folder in sorted(self._unfinished()):
            with _locked(folder) as mine:
                record = read_json(folder / RECORD) if mine else None
                if record is None or record["state"] not in UNFINISHED:
                    continue
                if (folder / CANCEL).exists():
                    self.finish(folder, "cancelled")
                    continue
                if record["attempts"] >= MAX_ATTEMPTS:
                    self.finish(folder, "failed", error=f"the service died {MAX_ATTEMPTS} times at this volume")
                    continue
                write_json(folder / RECORD, record | {"state": "running", "attempts": record["attempts"] + 1})
                yield folder
                return
        yield None

    def note(self, folder: Path, **fields: Any) -> None:
        """Adds to the record of a claimed job, before its mask is there."""
        write_json(folder / RECORD, dict(read_json(folder / RECORD)) | fields)

    def finish(self, folder: Path, state: str, **fields: Any) -> dict[str, Any]:
        """Ends a claimed job: done, failed or cancelled; its volume is removed, and a mask that is not to be seen."""
        record = dict(read_json(folder / RECORD)) | {"state": state, "changed": time.time(), **fields}
        if state != "done":
            (folder / mask_name(record)).unlink(missing_ok=True)
            remove_beside(folder / MASK)
        write_json(folder / RECORD, record)
        (folder / VOLUME).unlink(missing_ok=True)
        return record

    def require_wanted(self, folder: Path) -> None:
        """Ends the work on a claimed job that its owner has cancelled.

        Raises:
            CancelledError: That is so.
        """
        if (folder / CANCEL).exists():
            raise CancelledError("the job was cancelled")

    def waiting(self) -> int:
        """How many are not finished."""
        return len(self._unfinished())

    def expire(self, now: float) -> int:
        """Removes what finished too long ago, and drafts that nobody completes; returns how many."""
        removed = 0
        for folder in self._folder.iterdir():
            if folder.name.endswith(".partial"):
                old = now - folder.stat().st_mtime > self._keep_seconds
            else:
                record = read_json(folder / RECORD)
                old = record is None or (
                    record["state"] not in UNFINISHED and now - record["changed"] > self._keep_seconds
                )
            if old:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def _unfinished(self) -> list[tuple[float, Path]]:
        found = []
        for folder in self._folder.iterdir():
            record = read_json(folder / RECORD) if ID.fullmatch(folder.name) else None
            if record is not None and record["state"] in UNFINISHED:
                found.append((record["accepted"], folder))
        return found


def mask_name(record: Mapping[str, Any]) -> str:
    """Name of a job's mask: NIfTI, or DICOM-SEG where that was asked for."""
    return DICOM_MASK if record.get("dicom") else MASK


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the lock is ours until the end of the block."""
    try:
        file = (folder / LOCK).open("a")
    except FileNotFoundError:  # expired in between
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
