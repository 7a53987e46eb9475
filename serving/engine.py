"""From a received volume to a mask in the audit log: the one way that requests and jobs share."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dropgen import memory
from dropgen.console import warn
from dropgen.errors import DropGenError, TooLargeError, VolumeError
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import Volume, mask_to_bytes
from dropgen.manifest import read_json, write_bytes
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.evaluation.memory import READING_BYTES, gib
from dropgen.platform.evaluation.uncertainty import MAPS, predict_asked
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.decode import Wanted, decode
from dropgen.serving.dicom_out import encode
from dropgen.serving.jobs import MASK, RECORD, VOLUME, CancelledError, Jobs, mask_name
from dropgen.serving.journal import Journal
from dropgen.serving.models import Models, Served
from dropgen.serving.quality import Findings, Segmented, find, write_beside
from dropgen.serving.room import require_room
from dropgen.serving.upload import Caps, SlowError, head
from dropgen.serving.watchdog import Watchdog

log = logging.getLogger(__name__)

VOXELS, HEADERS = "voxels.npy", "headers"
POLL_SECONDS = 0.5  # between looks for a job
SWEEP_SECONDS = 60.0  # between looks for what has expired


@dataclass(frozen=True)
class Order:
    """Who asked for what.

    Attributes:
        who: Name of the token.
        request: Id of the request.
        modality: As it was given.
        sha256: Of the volume's bytes.
        job: Its id, for a job.
        dicom: Whether the mask is wanted as DICOM-SEG.
        again: Whether it was asked for before, of a replica that may have died between log and answer.
        uncertain: Whether the model is also to say how sure it is.
    """

    who: str
    request: str
    modality: str | None
    sha256: str
    job: str | None = None
    dicom: bool = False
    again: bool = False
    uncertain: bool = False


@dataclass(frozen=True)
class Made:
    """What became of an order.

    Attributes:
        mask: .nii.gz on the volume's grid, or DICOM-SEG on the slices of its series.
        findings: What is told of it.
        uid: SOPInstanceUID of a DICOM-SEG.
    """

    mask: bytes
    findings: Findings
    uid: str | None = None


class Engine:
    """Predicts one volume at a time: two would need twice the memory and gain no time on the same cores.

    Args:
        models: Where models come from.
        audit: Gets one line for each mask.
        max_memory: Bytes that one prediction may take; a volume that would need more is refused.
        watchdog: Is told what the volume in hand is planned to take.
    """

    def __init__(self, models: Models, audit: Journal, max_memory: int, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self._models = models
        self._audit = audit
        self._max_memory = max_memory
        self._turn = threading.Lock()

    def segment(
        self, folder: Path, served: Served, order: Order, caps: Caps, wait: float = -1,
        require_wanted: Callable[[], None] = lambda: None,
    ) -> Made:  # fmt: skip
        """The mask of `folder/volume.nii`, or of the zip that lies there, made slab by slab, with what is told of it.

        Args:
            folder: Holds the volume; its voxels are mapped from there and removed afterwards. What stands beside the
                mask of a job is left there.
            served: The model.
            order: Who asked.
            caps: Of the volume.
            wait: Seconds to wait for a turn; -1 waits for ever.
            require_wanted: Called before and after the volume is read and before every window; what it raises ends
                the work.

        Raises:
            SlowError: Others were still before it.
            VolumeError: The volume cannot be used.
            TooLargeError: Reading it, or its prediction, would not fit in memory.
        """
        path, most = folder / VOLUME, self._max_memory // READING_BYTES
        header = head(path, caps)
        voxels = min(caps.voxels, most) if header is None else header.voxels
        if (needed := READING_BYTES * voxels) > self._max_memory:
            raise TooLargeError(
                f"reading the volume takes {gib(needed)} GiB of memory where {gib(self._max_memory)} GiB are free; "
                "crop or resample it"
            )
        if not self._turn.acquire(timeout=wait):
            raise SlowError(f"other volumes were in the way for {wait:g} s; try later, or send it to /v1/jobs")
        try:
            require_wanted()
            unfolded = caps.unfolded(path.stat().st_size) if header is None else 0
            headers = folder / HEADERS if order.dicom else None
            decoded = decode(Wanted(path, folder / VOXELS, voxels, unfolded, headers))
            require_wanted()
            if order.dicom and not decoded.slices:
                raise VolumeError("a DICOM-SEG needs the slices of a DICOM series; send a zip of them, or accept NIfTI")
            volume, modality = decoded.volume, served.modality_of(order.modality, decoded.modality)
            segmenter = self._models.segmenter(served)
            plan = require_room(segmenter, volume, self._max_memory, MAPS if order.uncertain else 0)
            log.info("planned %s of %s GiB", plan, gib(self._max_memory))
            with self.watchdog.predicting(plan.peak):
                spec = segmenter.spec
                prepared = prepare((volume,), spec.preparation, modality)
                with _before_windows(segmenter, require_wanted):
                    labels, uncertainty = predict_asked(segmenter, prepared, order.uncertain)
                del prepared
                mask = Volume(labels, volume.affine)
                segmented = Segmented(volume, mask, uncertainty)
                findings = find(segmented, spec.classes, spec.training, spec.regions)
                if order.job is not None:
                    title = f"{served.registered.name} {served.registered.version}"  # a file name can hold a patient's
                    write_beside(folder / MASK, segmented, findings, served.model.labelling.names, title)
                if order.dicom:
                    made = encode(mask.array, decoded.slices, served.model, "labelmap")
                    return Made(made.content, findings, made.uid)
                return Made(mask_to_bytes(mask.array, mask.affine, served.model.note, served.model.comment), findings)
        except MemoryError:
            raise TooLargeError("the volume needs more memory than the server has; crop or resample it") from None
        finally:
            (folder / VOXELS).unlink(missing_ok=True)
            shutil.rmtree(folder / HEADERS, ignore_errors=True)
            memory.give_back()
            self._turn.release()

    def record(self, mask: bytes, served: Served, order: Order, uid: str | None = None) -> str:
        """Writes the audit line of a mask, unless it is there; returns the mask's id, its sha256."""
        dicom = {} if uid is None else {"sop_instance_uid": uid}
        output = hashlib.sha256(mask).hexdigest()
        if order.again and self._audit.holds(who=order.who, request=order.request, output_sha256=output):
            return output
        self._audit.add(
            who=order.who, request=order.request, job=order.job, input_sha256=order.sha256,
            model=served.registered.name, version=served.registered.version, digest=served.model.digest,
            output_sha256=output, **dicom, use=RESEARCH_ONLY,
        )  # fmt: skip
        return output

    def audited(self, job: str) -> bool:
        """Whether a job has its line already."""
        return self._audit.holds(job=job)

    def find(self, wanted: str) -> Served:
        """See `Models.find`."""
        return self._models.find(wanted)


@contextlib.contextmanager
def _before_windows(segmenter: Segmenter, call: Callable[[], None]) -> Iterator[None]:
    hook = segmenter.network.register_forward_pre_hook(lambda *_: call())
    try:
        yield
    finally:
        hook.remove()


def work_once(engine: Engine, jobs: Jobs, caps: Caps) -> bool:
    """Takes one job to its end; False where there was none.

    Killed at any point, the next call of any process goes on: a mask that is there is not made again, and a line of
    the audit log is not written twice.
    """
    with jobs.claim() as folder:
        if folder is None:
            return False
        record = read_json(folder / RECORD)
        order = Order(
            record["who"], record["request"], record["modality"], record["input_sha256"], record["id"],
            bool(record.get("dicom")), uncertain=bool(record.get("uncertainty")),
        )  # fmt: skip
        try:
            served = engine.find(record["model_version"])  # the version of when it was accepted
            mask = folder / mask_name(record)
            again = mask.exists()
            if not again:
                made = engine.segment(folder, served, order, caps, require_wanted=lambda: jobs.require_wanted(folder))
                jobs.require_wanted(folder)
                jobs.note(folder, findings=asdict(made.findings), sop_instance_uid=made.uid)
                write_bytes(mask, made.mask)
            if not (again and engine.audited(record["id"])):
                uid = read_json(folder / RECORD).get("sop_instance_uid")
                engine.record(mask.read_bytes(), served, order, uid)
            jobs.finish(folder, "done", output_sha256=hashlib.sha256(mask.read_bytes()).hexdigest())
        except CancelledError:
            jobs.finish(folder, "cancelled")
        except DropGenError as error:
            kind = "refused" if isinstance(error, (VolumeError, TooLargeError)) else "failed"
            jobs.finish(folder, "failed", error=str(error), kind=kind)
        except Exception as error:  # whatever this volume brought about, the others are not to pay for it
            jobs.finish(folder, "failed", error=f"the server failed with {type(error).__name__}", kind="failed")
    return True


def work(engine: Engine, jobs: Jobs, caps: Caps, stop: threading.Event) -> None:
    """Works on jobs until told to stop, or to begin nothing new."""
    swept = 0.0
    while not (stop.is_set() or engine.watchdog.worn):
        try:
            if time.monotonic() - swept > SWEEP_SECONDS:
                jobs.expire(time.time())
                swept = time.monotonic()
            with engine.watchdog.job():
                worked = work_once(engine, jobs, caps)
            if worked:
                continue
        except OSError as error:  # a full disk may have room again
            warn(f"jobs cannot be worked on: {error.strerror}")
        stop.wait(POLL_SECONDS)
