"""`dropgen segment`: every scan of a folder, in this process or through a running service.

One broken file costs that file only; a second run does what is missing, new or changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil
import torch

from dropgen import console
from dropgen.config import Component
from dropgen.errors import ConfigError, DropGenError, ResourceError, ServiceError, VolumeError
from dropgen.features.studies.volume import Volume, read_volume, write_mask
from dropgen.manifest import digest, file_digest
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import fetch
from dropgen.serving.adapted import adapt
from dropgen.serving.client import Client
from dropgen.serving.ledger import OUTCOMES_FILE, Ledger, Outcome
from dropgen.serving.models import Model
from dropgen.serving.room import require_room
from dropgen.serving.tokens import client_token

SUFFIXES = (".nii.gz", ".nii")
CHANNEL = "_0000"  # nnU-Net's mark of an image's only channel; its masks have none
NAMED_FAILURES = 5

Segment = Callable[[Path], Volume]  # a scan's path to its mask on the scan's grid


def segment_folder(
    source: Path, target: Path, model: Model, segment: Segment, modality: str | None = None
) -> dict[str, Any]:
    """Segments every .nii and .nii.gz file that lies directly in a folder.

    Args:
        source: Folder of scans.
        target: Folder for masks (`<case>.nii.gz`), `outcomes.csv` and the ledger.
        model: Part of what decides whether a mask is still good.
        segment: Makes the mask of one file.
        modality: Likewise part of it.

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
    ledger = Ledger(target, list(scans), model.classes[1:])
    outcomes = []
    try:
        with console.progress("files") as bars:
            task = bars.add_task("segment", total=len(scans), note="")
            for mask, scan in scans.items():
                bars.update(task, note=scan.name)
                outcome, key = _one(scan, target / mask, model, segment, modality, ledger)
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
    scan: Path, mask: Path, model: Model, segment: Segment, modality: str | None, ledger: Ledger
) -> tuple[Outcome, str | None]:
    case, started = mask.name.removesuffix(SUFFIXES[0]), time.monotonic()
    try:
        key = digest([file_digest(scan), model.digest, modality])
        if (known := ledger.voxels(mask.name, key)) is not None:
            return Outcome(case, scan.name, "skipped", voxels=known), key
        result = segment(scan)
    except ServiceError:
        raise
    except Exception as error:  # whatever this file brought about, the others are not to pay for it
        reason = " ".join(str(error).split()) if isinstance(error, DropGenError) else f"{type(error).__name__}: {error}"
        return Outcome(case, scan.name, "failed", reason, _since(started)), None
    try:
        write_mask(mask, result.array, result.affine)
    except OSError as error:
        raise ResourceError(f"cannot write {mask} ({error.strerror}); free space or name another folder") from error
    counts = np.bincount(result.array.ravel(), minlength=len(model.classes))
    voxels = {name: int(count) for name, count in zip(model.classes[1:], counts[1:], strict=False)}
    return Outcome(case, scan.name, "done", "", _since(started), voxels), key


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error.strerror}); name another output folder") from None


def _backend(arguments: argparse.Namespace) -> tuple[Model, Segment]:
    modality = arguments.modality
    if arguments.adapt is None and arguments.stable_bundle is not None:
        raise ConfigError("--stable-bundle is for the test-time methods sfb and alpha; name one with --adapt")
    if arguments.url is not None:
        if arguments.bundle is not None or arguments.adapt is not None:
            raise ConfigError("--url excludes --bundle and --adapt; the service has its own model")
        client = Client(arguments.url, client_token(arguments.root, arguments.token_file, arguments.url))
        return client.model(), lambda path: client.segment(path, modality)
    if arguments.bundle is not None:
        bundle = arguments.bundle.expanduser().resolve()
        model = Model.of(bundle, str(bundle))
    else:
        bundle = fetch(arguments.root, arguments.name, arguments.alias)
        model = Model.of(bundle, f"models:/{arguments.name}@{arguments.alias}")
    segmenter = Segmenter.load(bundle, "cuda" if torch.cuda.is_available() else "cpu")
    if arguments.adapt is not None:
        model, segmenter = adapt(model, segmenter, Component.parse(arguments.adapt), arguments.stable_bundle)

    def segment(path: Path) -> Volume:
        volume = read_volume(path)
        require_room(segmenter, volume, psutil.virtual_memory().available)
        return Volume(segmenter.predict(volume, modality), volume.affine)

    return model, segment


def _failures(cases: Sequence[dict[str, Any]], table: str) -> VolumeError:
    failed = [f"{case['file']} ({case['reason']})" for case in cases if case["outcome"] == "failed"]
    more = f", and {len(failed) - NAMED_FAILURES} more" if len(failed) > NAMED_FAILURES else ""
    return VolumeError(
        f"{len(failed)} of {len(cases)} files failed: {', '.join(failed[:NAMED_FAILURES])}{more}; "
        f"{table} lists them, the same command tries them again"
    )


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen segment`.

    Raises:
        VolumeError: Some files failed; all others are done.
    """
    source, target = arguments.input.expanduser().resolve(), arguments.output.expanduser().resolve()
    find_scans(source)  # before a model is loaded for nothing
    model, segment = _backend(arguments)
    document = segment_folder(source, target, model, segment, arguments.modality)
    counts = ", ".join(f"{document[kind]} {kind}" for kind in ("done", "skipped", "failed"))
    console.say(f"{counts}, with {model.uri}")
    console.say(f"masks: {target}, table: {document['outcomes']}")
    if document["failed"]:
        error = _failures(document["cases"], document["outcomes"])
        error.document = document
        raise error
    return document


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["segment", *sys.argv[1:]]))
