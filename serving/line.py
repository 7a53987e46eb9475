"""One scan from its file to its mask, with whatever stands beside that; and what is told of the way."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dropgen.errors import DropGenError, ResourceError, ServiceError
from dropgen.features.studies.volume import mask_to_bytes
from dropgen.manifest import digest, write_bytes
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.evaluation.quality import ClassRecord
from dropgen.serving.backend import Segment, StoppedError
from dropgen.serving.cases import SUFFIXES, Scan
from dropgen.serving.dicom_out import Encoded, SegType, encode
from dropgen.serving.journal import Journal
from dropgen.serving.ledger import Known, Outcome
from dropgen.serving.models import Model
from dropgen.serving.quality import DICOM_SEG, Findings, Segmented, find, remove_beside, write_beside


@dataclass(frozen=True)
class Asked:
    """What is wanted of every scan; part of what decides whether a mask is still good.

    Attributes:
        modality: Of scans of which neither manifest nor DICOM tag says one.
        uncertain: Whether the model also says how sure it is.
        dicom_seg: Whether a DICOM series gets a DICOM-SEG beside its mask, and of which type.
    """

    modality: str | None = None
    uncertain: bool = False
    dicom_seg: SegType | None = None


PLAIN = Asked()


@dataclass(frozen=True)
class Task:
    """One scan to segment.

    Attributes:
        scan: Where it is.
        known: The mask that an earlier run left.
        again: Whether a worker died that had it in hand.
    """

    scan: Scan
    known: Known | None = None
    again: bool = False

    @property
    def mask(self) -> str:
        """Name of the mask's file."""
        return self.scan.case + SUFFIXES[0]


@dataclass(frozen=True)
class Done:
    """What became of a task.

    Attributes:
        task: The task.
        outcome: For the table.
        key: Hash of everything the mask depends on; None where there is no mask.
        in_model: As `Segmented` has it.
        worker: The host and the process.
    """

    task: Task
    outcome: Outcome
    key: str | None
    in_model: tuple[float, float] | None = None
    worker: str = ""


@dataclass(frozen=True)
class Line:
    """The way of every scan of a run; may be gone by several threads at once.

    Attributes:
        target: Folder for masks.
        model: Part of what decides whether a mask is still good.
        audit: Gets a line for every mask before the mask is there.
        run: Tells the lines of this run from those of others.
        asked: What is wanted.
    """

    target: Path
    model: Model
    audit: Journal
    run: str
    asked: Asked = PLAIN

    def take(self, task: Task, segment: Segment, records: Mapping[str, ClassRecord]) -> Done:
        """Takes one scan to its mask, or to the reason why it has none.

        Args:
            task: The scan.
            segment: Makes its mask.
            records: What the model's training labels say of each class.

        Raises:
            ServiceError: The service went away.
            ResourceError: The mask cannot be written.
            StoppedError: The run was interrupted.
        """
        started, scan = time.monotonic(), task.scan
        kind = self.asked.dicom_seg if scan.series else None
        mask = self.target / task.mask
        try:
            sha256 = scan.sha256()
            key = self._key(scan, sha256, kind)
            known = task.known
            if known is not None and known.key == key and mask.exists() and (kind is None or _seg(mask).exists()):
                return Done(task, Outcome(scan.case, scan.file, "skipped", findings=known.findings), key)
            with segment(scan) as result:
                findings = find(result, self.model.classes, records, self.model.regions)
                seg = None if kind is None else encode(result.mask.array, result.slices, self.model, kind)
                try:
                    self._write(mask, result, findings, seg, sha256, task.again)
                except OSError as error:
                    raise _Unwritable(error.strerror) from error
        except (ServiceError, StoppedError):
            raise
        except _Unwritable as error:
            raise ResourceError(f"cannot write {mask} ({error}); free space or name another folder") from error
        except Exception as error:  # whatever this scan brought about, the others are not to pay for it
            reason = (
                " ".join(str(error).split()) if isinstance(error, DropGenError) else f"{type(error).__name__}: {error}"
            )
            return Done(task, Outcome(scan.case, scan.file, "failed", reason, _since(started)), None)
        outcome = Outcome(scan.case, scan.file, "done", "", _since(started), findings)
        return Done(task, outcome, key, result.in_model, f"{socket.gethostname()}:{os.getpid()}")

    def _key(self, scan: Scan, sha256: str, kind: SegType | None) -> str:
        named = [kind, self.model.name, self.model.version] if kind else None  # what a DICOM-SEG says beside the voxels
        modality = scan.modality or self.asked.modality
        return digest([sha256, self.model.digest, modality, self.asked.uncertain, named])

    def _write(
        self, mask: Path, result: Segmented, findings: Findings, seg: Encoded | None, sha256: str, again: bool
    ) -> None:
        """Writes a mask and what stands beside it, after their line in the audit log."""
        content = mask_to_bytes(result.mask.array, result.mask.affine, self.model.note, self.model.comment)
        made = {"run": self.run, "input_sha256": sha256, "output_sha256": _sha256(content)}
        if not (again and seg is None and self.audit.holds(**made)):  # the dead worker may have got so far
            dicom = {} if seg is None else {"sop_instance_uid": seg.uid, "dicom_sha256": _sha256(seg.content)}
            self.audit.add(
                who=_user(), model=self.model.name, version=self.model.version, digest=self.model.digest, **made,
                **dicom, use=RESEARCH_ONLY,
            )  # fmt: skip
        remove_beside(mask)  # of an earlier mask
        write_bytes(mask, content)
        if seg is not None:
            write_bytes(_seg(mask), seg.content)
        write_beside(mask, result, findings, self.model.labelling.names)


class _Unwritable(Exception):
    """Not this scan's fault; what went wrong."""


def _seg(mask: Path) -> Path:
    return mask.with_name(mask.name.removesuffix(SUFFIXES[0]) + DICOM_SEG)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _user() -> str:
    """Who runs this, by the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return str(os.getuid())


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
