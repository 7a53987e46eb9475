"""`dropgen segment`: every scan of a folder, in this process or through a running service.

One broken file costs that file only; a second run does what is missing, new or changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dropgen import console, memory
from dropgen.config import Component
from dropgen.errors import ConfigError, DropGenError, ResourceError, ServiceError, TooLargeError, VolumeError
from dropgen.features.studies.volume import Volume, read_grid, read_volume, write_mask
from dropgen.manifest import digest, file_digest
from dropgen.platform.evaluation.memory import MemoryPlan, gib
from dropgen.platform.evaluation.quality import ClassRecord
from dropgen.platform.evaluation.uncertainty import MAPS, extra_passes, predict_uncertain
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import fetch
from dropgen.serving.adapted import adapt
from dropgen.serving.client import Client
from dropgen.serving.ledger import OUTCOMES_FILE, Ledger, Outcome
from dropgen.serving.models import Model
from dropgen.serving.quality import BESIDE, Segmented, find, write_beside
from dropgen.serving.room import plan_room, require_room
from dropgen.serving.tokens import client_token

SUFFIXES = (".nii.gz", ".nii")
CHANNEL = "_0000"  # nnU-Net's mark of an image's only channel; its masks have none
NAMED_FAILURES = 5

Segment = Callable[[Path], Segmented]


def segment_folder(
    source: Path,
    target: Path,
    model: Model,
    segment: Segment,
    modality: str | None = None,
    records: Mapping[str, ClassRecord] | None = None,
    uncertain: bool = False,
) -> dict[str, Any]:
    """Segments every .nii and .nii.gz file that lies directly in a folder.

    Args:
        source: Folder of scans.
        target: Folder for masks (`<case>.nii.gz`) with previews (`<case>.png`), `outcomes.csv` and the ledger.
        model: Part of what decides whether a mask is still good.
        segment: Makes the mask of one file.
        modality: Likewise part of it.
        records: What the model's training labels say of each class.
        uncertain: Whether `segment` also says how sure it is; likewise part of it.

    Returns:
        Counts of done, skipped and failed, and one record per file.

    Raises:
        ConfigError: There is nothing to segment, or masks would overwrite something else.
        ServiceError: The service went away; what was done is kept.
        ResourceError: The masks cannot be written; what was done is kept.
    """
    scans = find_scans(source)
    if target.resolve() == source.resolve():
        raise ConfigError(f"masks would overwrite the scans in {source}; name another output folder")
    _make_folder(target)
    beside = [mask.removesuffix(SUFFIXES[0]) + suffix for mask in scans for suffix in BESIDE]
    if clash := set(beside) & set(scans):
        raise ConfigError(f"{scans[min(clash)].name} in {source} would give the name of another scan's map; rename it")
    ledger = Ledger(target, [*scans, *beside], model.classes[1:])
    asked = [modality, "uncertain"] if uncertain else [modality]
    outcomes = []
    try:
        with console.progress("files") as bars:
            task = bars.add_task("segment", total=len(scans), note="")
            for mask, scan in scans.items():
                bars.update(task, note=scan.name)
                outcome, key = _one(scan, target / mask, model, segment, asked, records or {}, ledger)
                ledger.add(outcome, mask, key)
                outcomes.append(outcome)
                bars.advance(task)
            bars.update(task, note="")
    finally:
        ledger.save()
    counts = {kind: sum(one.outcome == kind for one in outcomes) for kind in ("done", "skipped", "failed")}
    return {
        "input": str(source),
        "output": str(target),
        "outcomes": str(target / OUTCOMES_FILE),
        "model": asdict(model),
        **counts,
        "cases": [asdict(one) for one in outcomes],
    }


def find_scans(folder: Path) -> dict[str, Path]:
    """Maps the name of each mask to the scan it is made from, in the order of names.

    Raises:
        ConfigError: No folder, no scans, or two scans whose masks would have one name.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; name a folder of .nii or .nii.gz files")
    scans: dict[str, Path] = {}
    taken: dict[str, Path] = {}  # names that differ in case only are one file on some disks
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        mask = path.name[: -len(suffix)].removesuffix(CHANNEL) + SUFFIXES[0]
        if other := taken.get(mask.casefold()):
            raise ConfigError(f"{other.name} and {path.name} in {folder} would both give {mask}; rename one of them")
        taken[mask.casefold()] = scans[mask] = path
    if not scans:
        raise ConfigError(f"{folder} holds no .nii or .nii.gz file; name a folder that does")
    return scans


def _one(
    scan: Path,
    mask: Path,
    model: Model,
    segment: Segment,
    asked: Sequence[str | None],
    records: Mapping[str, ClassRecord],
    ledger: Ledger,
) -> tuple[Outcome, str | None]:
    case, started = mask.name.removesuffix(SUFFIXES[0]), time.monotonic()
    try:
        key = digest([file_digest(scan), model.digest, *asked])
        if (known := ledger.findings(mask.name, key)) is not None:
            return Outcome(case, scan.name, "skipped", findings=known), key
        result = segment(scan)
        findings = find(result, model.classes, records)
    except ServiceError:
        raise
    except Exception as error:  # whatever this file brought about, the others are not to pay for it
        reason = " ".join(str(error).split()) if isinstance(error, DropGenError) else f"{type(error).__name__}: {error}"
        return Outcome(case, scan.name, "failed", reason, _since(started)), None
    try:
        write_mask(mask, result.mask.array, result.mask.affine)
        write_beside(mask, result, findings, model.classes)
    except OSError as error:
        raise ResourceError(f"cannot write {mask} ({error.strerror}); free space or name another folder") from error
    return Outcome(case, scan.name, "done", "", _since(started), findings), key


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error.strerror}); name another output folder") from None


@dataclass(frozen=True)
class Backend:
    """What masks are made with.

    Attributes:
        model: Which model it is.
        segment: Makes the mask of one file.
        records: What its training labels say of each class; none behind a service, which does not say.
        plan: What a file will take, from its header; None where another process takes it.
    """

    model: Model
    segment: Segment
    records: Mapping[str, ClassRecord]
    plan: Callable[[Path], MemoryPlan] | None


def _backend(arguments: argparse.Namespace) -> Backend:
    modality, uncertain = arguments.modality, arguments.uncertainty
    if arguments.adapt is None and arguments.stable_bundle is not None:
        raise ConfigError("--stable-bundle is for the test-time methods sfb and alpha; name one with --adapt")
    if uncertain and (arguments.url is not None or arguments.adapt is not None):
        raise ConfigError("--uncertainty asks one plain model in this process; leave out --url and --adapt")
    if arguments.url is not None:
        if arguments.bundle is not None or arguments.adapt is not None:
            raise ConfigError("--url excludes --bundle and --adapt; the service has its own model")
        client = Client(arguments.url, client_token(arguments.root, arguments.token_file, arguments.url))

        def through(path: Path) -> Segmented:
            return Segmented(read_volume(path), client.segment(path, modality))

        return Backend(client.model(), through, {}, None)
    if arguments.bundle is not None:
        bundle = arguments.bundle.expanduser().resolve()
        model = Model.of(bundle, str(bundle))
    else:
        bundle = fetch(arguments.root, arguments.name, arguments.alias)
        model = Model.of(bundle, f"models:/{arguments.name}@{arguments.alias}")
    segmenter = Segmenter.load(bundle, "cuda" if torch.cuda.is_available() else "cpu")
    if arguments.adapt is not None:
        model, segmenter = adapt(model, segmenter, Component.parse(arguments.adapt), arguments.stable_bundle)
    maps = MAPS if uncertain else 0
    if uncertain:
        console.say(f"--uncertainty: {1 + extra_passes(segmenter)} passes over every volume instead of 1")

    def segment(path: Path) -> Segmented:
        require_room(segmenter, read_grid(path), memory.available(), maps)
        volume = read_volume(path)
        if not uncertain:
            return Segmented(volume, Volume(segmenter.predict(volume, modality), volume.affine))
        mask, uncertainty = predict_uncertain(segmenter, volume, modality)
        return Segmented(volume, Volume(mask, volume.affine), uncertainty)

    return Backend(model, segment, segmenter.spec.training, lambda path: plan_room(segmenter, read_grid(path), maps))


def _say_plan(scans: Iterable[Path], plan: Callable[[Path], MemoryPlan]) -> None:
    """Says before the first scan is read what the one that takes most will take."""
    plans = {}
    for scan in scans:
        with contextlib.suppress(VolumeError, TooLargeError):  # its turn comes, with its reason
            plans[scan.name] = plan(scan)
    if plans:
        name = max(plans, key=lambda name: plans[name].peak)
        console.say(f"memory: {name} takes most, {plans[name]}; {gib(memory.available())} GiB are free")


def _failures(cases: Sequence[dict[str, Any]], table: str) -> VolumeError:
    failed = [f"{case['file']} ({case['reason']})" for case in cases if case["outcome"] == "failed"]
    return VolumeError(
        f"{len(failed)} of {len(cases)} files failed: {', '.join(failed[:NAMED_FAILURES])}{_more(failed)}; "
        f"{table} lists them, the same command tries them again"
    )


def _more(named: Sequence[object]) -> str:
    return f", and {len(named) - NAMED_FAILURES} more" if len(named) > NAMED_FAILURES else ""


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen segment`.

    Raises:
        VolumeError: Some files failed; all others are done.
    """
    source, target = arguments.input.expanduser().resolve(), arguments.output.expanduser().resolve()
    scans = find_scans(source)  # before a model is loaded for nothing
    backend = _backend(arguments)
    if backend.plan is not None:
        _say_plan(scans.values(), backend.plan)
    document = segment_folder(
        source, target, backend.model, backend.segment, arguments.modality, backend.records, arguments.uncertainty
    )
    counts = ", ".join(f"{document[kind]} {kind}" for kind in ("done", "skipped", "failed"))
    console.say(f"{counts}, with {backend.model.uri}")
    console.say(f"masks: {target}, table: {document['outcomes']}")
    if odd := [case for case in document["cases"] if case["findings"] and case["findings"]["flags"]]:
        console.say(f"to look at: {', '.join(case['case'] for case in odd[:NAMED_FAILURES])}" + _more(odd))
    if document["failed"]:
        error = _failures(document["cases"], document["outcomes"])
        error.document = document
        raise error
    return document


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["segment", *sys.argv[1:]]))
