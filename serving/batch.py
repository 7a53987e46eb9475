"""`dropgen segment`: every scan of an input, in this process or through a running service.

One broken scan costs that scan only; a second run does what is missing, new or changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import getpass
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dropgen import console, memory
from dropgen.errors import ConfigError, DropGenError, ResourceError, ServiceError, TooLargeError, VolumeError
from dropgen.features.studies.volume import mask_to_bytes
from dropgen.manifest import digest, write_bytes
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.evaluation.memory import MemoryPlan, gib
from dropgen.platform.evaluation.quality import ClassRecord
from dropgen.serving.backend import Segment, open_backend
from dropgen.serving.cases import SUFFIXES, Cases, Scan, find_cases
from dropgen.serving.dicom_out import Encoded, SegType, encode
from dropgen.serving.dicomweb import Archive, read_auth
from dropgen.serving.fetched import SERIES_FOLDER, fetch_cases, store_masks
from dropgen.serving.journal import AUDIT_FILE, Journal
from dropgen.serving.ledger import OUTCOMES_FILE, Ledger, Outcome
from dropgen.serving.models import Model
from dropgen.serving.quality import BESIDE, DICOM_SEG, Findings, Segmented, find, remove_beside, write_beside

NAMED_FAILURES = 5
COUNTED = ("done", "skipped", "failed", "left out")


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


def segment_cases(
    cases: Cases,
    source: Path,
    target: Path,
    model: Model,
    segment: Segment,
    audit: Journal,
    records: Mapping[str, ClassRecord] | None = None,
    asked: Asked = PLAIN,
) -> dict[str, Any]:
    """Segments the cases of an input.

    Args:
        cases: From `find_cases`.
        source: Where they are from.
        target: Folder for masks (`<case>.nii.gz`) with previews (`<case>.png`), `outcomes.csv` and the ledger.
        model: Part of what decides whether a mask is still good.
        segment: Makes the mask of one scan.
        audit: Gets a line for every mask before the mask is there.
        records: What the model's training labels say of each class.
        asked: What is wanted.

    Returns:
        Counts of done, skipped, failed and left out, and one record per scan, series or file.

    Raises:
        ConfigError: Masks would overwrite something else.
        ServiceError: The service went away; what was done is kept.
        ResourceError: The masks cannot be written; what was done is kept.
    """
    _make_folder(target)
    masks = {scan.case + SUFFIXES[0]: scan for scan in cases.scans}
    beside = [mask.removesuffix(SUFFIXES[0]) + suffix for mask in masks for suffix in BESIDE]
    if clash := set(beside) & set(masks):
        raise ConfigError(f"{masks[min(clash)].file} in {source} would give the name of another scan's map; rename it")
    ledger = Ledger(target, [*masks, *beside], model.classes[1:])
    outcomes = list(cases.others)
    for other in cases.others:
        ledger.tell(other)
    try:
        with console.progress("scans") as bars:
            task = bars.add_task("segment", total=len(masks), note="")
            for mask, scan in masks.items():
                bars.update(task, note=scan.file)
                outcome, key = _one(scan, target / mask, model, segment, audit, records or {}, asked, ledger)
                ledger.add(outcome, mask, key)
                outcomes.append(outcome)
                bars.advance(task)
            bars.update(task, note="")
    finally:
        ledger.save()
    return {
        "input": str(source),
        "output": str(target),
        "outcomes": str(target / OUTCOMES_FILE),
        "model": asdict(model),
        **{kind.replace(" ", "_"): sum(one.outcome == kind for one in outcomes) for kind in COUNTED},
        "cases": [asdict(one) for one in outcomes],
    }


def _one(
    scan: Scan,
    mask: Path,
    model: Model,
    segment: Segment,
    audit: Journal,
    records: Mapping[str, ClassRecord],
    asked: Asked,
    ledger: Ledger,
) -> tuple[Outcome, str | None]:
    started = time.monotonic()
    kind = asked.dicom_seg if scan.series else None
    try:
        sha256 = scan.sha256()
        named = [kind, model.name, model.version] if kind else None  # what a DICOM-SEG says beside the voxels
        key = digest([sha256, model.digest, scan.modality or asked.modality, asked.uncertain, named])
        known = ledger.findings(mask.name, key)
        if known is not None and (kind is None or _seg(mask).exists()):
            return Outcome(scan.case, scan.file, "skipped", findings=known), key
        result = segment(scan)
        findings = find(result, model.classes, records)
        seg = None if kind is None else encode(result.mask.array, result.slices, model, kind)
    except ServiceError:
        raise
    except Exception as error:  # whatever this scan brought about, the others are not to pay for it
        reason = " ".join(str(error).split()) if isinstance(error, DropGenError) else f"{type(error).__name__}: {error}"
        return Outcome(scan.case, scan.file, "failed", reason, _since(started)), None
    try:
        _write(mask, result, findings, seg, model, audit, sha256)
    except OSError as error:
        raise ResourceError(f"cannot write {mask} ({error.strerror}); free space or name another folder") from error
    return Outcome(scan.case, scan.file, "done", "", _since(started), findings), key


def _write(
    mask: Path,
    result: Segmented,
    findings: Findings,
    seg: Encoded | None,
    model: Model,
    audit: Journal,
    sha256: str,
) -> None:
    """Writes a mask and what stands beside it, after their line in the audit log."""
    content = mask_to_bytes(result.mask.array, result.mask.affine)
    dicom = {} if seg is None else {"sop_instance_uid": seg.uid, "dicom_sha256": _sha256(seg.content)}
    audit.add(
        who=_user(), input_sha256=sha256, model=model.name, version=model.version, digest=model.digest,
        output_sha256=_sha256(content), **dicom, use=RESEARCH_ONLY,
    )  # fmt: skip
    remove_beside(mask)  # of an earlier mask
    write_bytes(mask, content)
    if seg is not None:
        write_bytes(_seg(mask), seg.content)
    write_beside(mask, result, findings, model.classes)


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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error.strerror}); name another output folder") from None


def _say_cases(cases: Cases) -> None:
    """Says of every DICOM series, and of what is no case, what becomes of it and why."""
    for scan in cases.scans:
        if scan.series:
            console.say(f"segment:  {scan.file} ({scan.about})")
    for other in cases.others:
        console.say(f"{other.outcome + ':':9} {other.file} ({other.reason})")


def _say_plan(scans: Iterable[Scan], plan: Callable[[Scan], MemoryPlan]) -> None:
    """Says before the first scan is read what the NIfTI file that takes most will take."""
    plans = {}
    for scan in scans:
        if scan.series:  # its grid is known once its slices are in order
            continue
        with contextlib.suppress(VolumeError, TooLargeError):  # its turn comes, with its reason
            plans[scan.file] = plan(scan)
    if plans:
        name = max(plans, key=lambda name: plans[name].peak)
        console.say(f"memory: {name} takes most, {plans[name]}; {gib(memory.available())} GiB are free")


def _failures(cases: Sequence[dict[str, Any]], table: str) -> VolumeError:
    failed = [f"{case['file']} ({case['reason']})" for case in cases if case["outcome"] == "failed"]
    tried = sum(case["outcome"] != "left out" for case in cases)
    return VolumeError(
        f"{len(failed)} of {tried} scans failed: {', '.join(failed[:NAMED_FAILURES])}{_more(failed)}; "
        f"{table} lists them, the same command tries them again"
    )


def _more(named: Sequence[object]) -> str:
    return f", and {len(named) - NAMED_FAILURES} more" if len(named) > NAMED_FAILURES else ""


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen segment`.

    Raises:
        VolumeError: Some files failed; all others are done.
    """
    target = arguments.output.expanduser().resolve()
    archive = None
    if isinstance(arguments.input, str):
        archive = Archive(arguments.input, read_auth(arguments.dicomweb_auth))
        arguments.dicom_seg = arguments.dicom_seg or ("labelmap" if arguments.store else None)
        source, cases = target / SERIES_FOLDER, fetch_cases(archive, target, arguments.derived)
    elif arguments.store:
        raise ConfigError("--store gives masks back to a DICOMweb archive, and the input is none; leave it out")
    else:
        source = arguments.input.expanduser().resolve()
        cases = find_cases(source, target, arguments.derived)  # before a model is loaded for nothing
    if arguments.dicom_seg is not None and not any(scan.series for scan in cases.scans):
        raise ConfigError(f"--dicom-seg needs DICOM series, which {source} has none of; leave it out")
    _say_cases(cases)
    backend = open_backend(arguments)
    if backend.plan is not None:
        _say_plan(cases.scans, backend.plan)
    audit = Journal(arguments.root / "service" / AUDIT_FILE, durable=True)
    document = segment_cases(
        cases,
        source,
        target,
        backend.model,
        backend.segment,
        audit,
        backend.records,
        Asked(arguments.modality, arguments.uncertainty, arguments.dicom_seg),
    )
    counts = ", ".join(f"{document[kind.replace(' ', '_')]} {kind}" for kind in COUNTED)
    console.say(f"{counts}, with {backend.model.uri}")
    console.say(f"masks: {target}, table: {document['outcomes']}")
    if odd := [case for case in document["cases"] if case["findings"] and case["findings"]["flags"]]:
        console.say(f"to look at: {', '.join(case['case'] for case in odd[:NAMED_FAILURES])}" + _more(odd))
    refused = store_masks(archive, target, document, audit) if archive is not None and arguments.store else None
    if document["failed"]:
        error = _failures(document["cases"], document["outcomes"])
        error.document = document
        raise error
    if refused is not None:
        raise refused
    return document


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["segment", *sys.argv[1:]]))
