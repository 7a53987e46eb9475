"""`dropgen segment`: every scan of an input, in this process or through a running service.

One broken scan costs that scan only; a second run does what is missing, new or changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dropgen import console
from dropgen.config import Component
from dropgen.errors import ConfigError, ResourceError, VolumeError
from dropgen.platform.tracking import resolve
from dropgen.serving.adapted import adapted_model
from dropgen.serving.backend import LocalModel, Read, Recipe, Service, read_here
from dropgen.serving.cases import SUFFIXES, Cases, find_cases
from dropgen.serving.channels import with_channels
from dropgen.serving.client import Client
from dropgen.serving.dicomweb import Archive, read_auth
from dropgen.serving.fetched import SERIES_FOLDER, fetch_cases, store_masks
from dropgen.serving.interrupts import interrupt, on_signals
from dropgen.serving.journal import AUDIT_FILE, Journal
from dropgen.serving.ledger import OUTCOMES_FILE, Ledger, Outcome
from dropgen.serving.line import PLAIN, Asked, Done, Line, Task
from dropgen.serving.models import Model
from dropgen.serving.quality import BESIDE
from dropgen.serving.summary import write_summary
from dropgen.serving.threads import OnDone, effort_of, work_here
from dropgen.serving.tokens import client_token

NAMED_FAILURES = 5
COUNTED = ("done", "skipped", "failed", "left out")
GRACE_SECONDS = 5  # for requests under way when the run is interrupted
LARGE_STUDY = 20  # scans from which on the start of a process of its own, some ten seconds, is no matter

Work = Callable[[Sequence[Task], Line, OnDone], None]


def segment_cases(
    cases: Cases,
    source: Path,
    target: Path,
    model: Model,
    work: Work,
    audit: Journal,
    asked: Asked = PLAIN,
) -> dict[str, Any]:
    """Segments the cases of an input.

    Args:
        cases: From `find_cases`.
        source: Where they are from.
        target: Folder for masks (`<case>.nii.gz`) with previews (`<case>.png`), `outcomes.csv` and the ledger.
        model: Part of what decides whether a mask is still good.
        work: Does all tasks.
        audit: Gets a line for every mask before the mask is there.
        asked: What is wanted.

    Returns:
        Counts of done, skipped, failed and left out, one record per scan, series or file, and how busy the model was.

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
    ledger = Ledger(target, list(masks), beside, model.classes[1:])
    for other in cases.others:
        ledger.tell(other)
    dones: list[Done] = []
    tasks = [Task(scan, ledger.known(mask)) for mask, scan in masks.items()]
    try:
        with console.progress("scans") as bars:
            bar = bars.add_task("segment", total=len(tasks), note="")

            def on_done(done: Done) -> None:
                ledger.add(done.outcome, done.task.mask, done.key)
                dones.append(done)
                bars.update(bar, advance=1, note=done.outcome.file)

            work(tasks, Line(target, model, audit, secrets.token_hex(8), asked), on_done)
            bars.update(bar, note="")
    finally:
        ledger.save()
    effort, outcomes = effort_of(dones), ledger.outcomes
    counts = {kind: sum(one.outcome == kind for one in outcomes) for kind in COUNTED}
    return {
        "input": str(source),
        "output": str(target),
        "outcomes": str(target / OUTCOMES_FILE),
        "summary": str(_summary(target, outcomes, model, ", ".join(f"{n} {kind}" for kind, n in counts.items()))),
        "model": asdict(model),
        **{kind.replace(" ", "_"): n for kind, n in counts.items()},
        "model_busy": None if effort.busy is None else round(effort.busy, 4),
        "cases": [asdict(one) for one in outcomes],
    }


def _summary(target: Path, outcomes: Sequence[Outcome], model: Model, counts: str) -> Path:
    try:
        return write_summary(target, outcomes, model, counts)
    except OSError as error:
        raise ResourceError(f"cannot write {target} ({error.strerror}); free space or name another folder") from error


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


def _failures(cases: Sequence[dict[str, Any]], table: str) -> VolumeError:
    failed = [f"{case['file']} ({case['reason']})" for case in cases if case["outcome"] == "failed"]
    tried = sum(case["outcome"] != "left out" for case in cases)
    return VolumeError(
        f"{len(failed)} of {tried} scans failed: {', '.join(failed[:NAMED_FAILURES])}{_more(failed)}; "
        f"{table} lists them, the same command tries them again"
    )


def _more(named: Sequence[object]) -> str:
    return f", and {len(named) - NAMED_FAILURES} more" if len(named) > NAMED_FAILURES else ""


def open_work(arguments: argparse.Namespace, scans: int, read: Read = read_here) -> tuple[Model, Work]:
    """Opens what the options name.

    Args:
        arguments: The options.
        scans: How many there are to segment, by which a process of its own pays or not.
        read: How a scan is read in this process.

    Raises:
        ConfigError: Options exclude each other.
        ServiceError: The service cannot be reached.
        RegistryError: There is no such model.
        CheckpointError: Its bundle is damaged.
    """
    if arguments.adapt is None and arguments.stable_bundle is not None:
        raise ConfigError("--stable-bundle is for the test-time methods sfb and alpha; name one with --adapt")
    if arguments.uncertainty and (arguments.url is not None or arguments.adapt is not None):
        raise ConfigError("--uncertainty asks one plain model in this process; leave out --url and --adapt")
    in_flight, stop = arguments.in_flight, threading.Event()
    if in_flight < 1:
        raise ConfigError(f"--in-flight {in_flight} takes no scan in hand; ask for at least 1")
    if arguments.url is not None:
        if arguments.bundle is not None or arguments.adapt is not None:
            raise ConfigError("--url excludes --bundle and --adapt; the service has its own model")
        if arguments.workers or arguments.address is not None:
            raise ConfigError("--url excludes --workers and --address; the service has its own replicas")
        client = Client(arguments.url, client_token(arguments.root, arguments.token_file, arguments.url), stop=stop)
        model = client.model()
        segment = Service(client, model, arguments.modality, read).segment
        if model.channels:
            raise ConfigError(
                f"{model.uri} takes images of {len(model.channels)} channels, {', '.join(model.channels)}, and a "
                "service takes one volume; leave out --url and name the model with --name or --bundle"
            )
        return model, lambda tasks, line, on_done: work_here(
            tasks, line, segment, {}, in_flight, on_done, stop, GRACE_SECONDS
        )
    model, recipe = _model(arguments)
    if (workers := _workers(arguments, scans)) > 0:
        from dropgen.serving.crew import Crew, work_on_ray  # ray takes a second, which a few scans need not

        crew = Crew(workers, in_flight, arguments.address)
        return model, lambda tasks, line, on_done: work_on_ray(tasks, line, recipe, crew, on_done, console.say)
    local = LocalModel(recipe, stop=stop, read=read)

    def work(tasks: Sequence[Task], line: Line, on_done: OnDone) -> None:
        for text in local.about([task.scan for task in tasks], in_flight):
            console.say(text)
        work_here(tasks, line, local.segment, local.segmenter.spec.training, in_flight, on_done, stop)

    return model, work


def _model(arguments: argparse.Namespace) -> tuple[Model, Recipe]:
    if arguments.bundle is not None:
        bundle = arguments.bundle.expanduser().resolve()
        model = Model.of(bundle, str(bundle))
    else:
        found = resolve(arguments.root, arguments.name, arguments.alias)
        bundle, model = found.bundle, Model.registered(found, f"models:/{arguments.name}@{arguments.alias}")
    component = stable = None
    if arguments.adapt is not None:
        component = Component.parse(arguments.adapt)
        stable = None if arguments.stable_bundle is None else arguments.stable_bundle.expanduser().resolve()
        model = adapted_model(model, component, stable)
    return model, Recipe(bundle, arguments.modality, arguments.uncertainty, component, stable)


def _workers(arguments: argparse.Namespace, scans: int) -> int:
    """Processes with a model; 0 for this one, which dies with it where a scan is too much for the machine."""
    if arguments.workers is None:
        own = scans >= LARGE_STUDY or arguments.address is not None
        return max(1, torch.cuda.device_count()) if own else 0
    if arguments.workers < 0 or (arguments.workers == 0 and arguments.address is not None):
        raise ConfigError(f"--workers {arguments.workers} has no process for a model; ask for at least 1")
    return int(arguments.workers)


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen segment`.

    Raises:
        VolumeError: Some files failed; all others are done.
    """
    if arguments.url is not None:
        on_signals(interrupt)  # terminated as well, it cancels the jobs that it waits for
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
    model, work = open_work(arguments, len(cases.scans))
    cases = with_channels(cases, model.channels, source)
    _say_cases(cases)
    audit = Journal(arguments.root / "service" / AUDIT_FILE, durable=True)
    asked = Asked(arguments.modality, arguments.uncertainty, arguments.dicom_seg)
    document = segment_cases(cases, source, target, model, work, audit, asked)
    counts = ", ".join(f"{document[kind.replace(' ', '_')]} {kind}" for kind in COUNTED)
    console.say(f"{counts}, with {model.uri}")
    if document["model_busy"] is not None and arguments.url is None:
        console.say(f"the model was busy {100 * document['model_busy']:.0f}% of the time between first and last scan")
    console.say(f"masks: {target}, table: {document['outcomes']}, page: {document['summary']}")
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
