"""The verbs `study check`, `study convert`, `study shift` and `study plan`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from dropgen.console import progress, say, warn
from dropgen.errors import ConfigError, ResourceError, StudyError
from dropgen.features.plan import document as plan_document
from dropgen.features.plan import make_plan, require_room
from dropgen.features.plan_page import notes, page, snippet
from dropgen.features.studies.benchmarks import benchmark_of
from dropgen.features.studies.benchmarks.amos import INCLUDE_VA_CT
from dropgen.features.studies.check import require_sound
from dropgen.features.studies.convert import convert
from dropgen.features.studies.shift import Copy, choose_shifts, shift_study
from dropgen.features.studies.sources import MANIFEST
from dropgen.features.studies.splits import SPLITS
from dropgen.features.studies.study import Study, load_study, read_study


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks a study, plans one, makes one of a benchmark's archive, or one with shifted copies of held-out cases.

    Raises:
        ConfigError: An argument is missing or belongs to the other action.
        StudyError: The study is not sound or the archive not as published; names every problem.
        ResourceError: What is planned does not fit this machine.
    """
    if arguments.action != "plan" and (arguments.memory_gb is not None or arguments.measure):
        raise ConfigError(f"study {arguments.action}: --memory-gb and --measure belong to study plan")
    if arguments.action == "convert":
        if arguments.raw is None or arguments.out is None:
            raise ConfigError(
                "study convert takes a benchmark, its archive and a folder, as in study convert amos amos22 out"
            )
        return _convert(arguments)
    if arguments.out is not None or arguments.include_va_ct:
        raise ConfigError(f"study {arguments.action}: the last argument belongs to study convert")
    if arguments.action == "shift":
        if arguments.raw is None:
            raise ConfigError("study shift takes a study YAML and a folder, as in study shift my-study.yaml shifted")
        return _shift(arguments)
    if arguments.raw is not None:
        raise ConfigError(f"study {arguments.action} takes one study and nothing else")
    return _plan(arguments) if arguments.action == "plan" else _check(arguments)


def _plan(arguments: argparse.Namespace) -> dict[str, Any]:
    source, root = Path(arguments.study), arguments.root
    with progress("cases") as bar:
        task = bar.add_task(f"look at {source.name}", total=None, note="")
        plan = make_plan(
            source, root, arguments.memory_gb, arguments.measure, lambda case: bar.update(task, advance=1, note=case.id)
        )
    say(page(plan, root))
    say("\nto start from:\n")
    say(snippet(plan, source))
    for note in notes(plan):
        warn(note)
    found = plan_document(plan, root)
    try:
        require_room(plan, root)
    except ResourceError as error:
        error.document = found
        raise
    return found


def _shift(arguments: argparse.Namespace) -> dict[str, Any]:
    study = load_study(Path(arguments.study), arguments.root)
    shifts = choose_shifts(arguments.shifts)
    with progress("copies") as bar:
        task = bar.add_task(f"shift {study.name}", total=None, note="")

        def count(copy: Copy, total: int) -> None:
            bar.update(task, total=total, advance=1, note=copy.shift or copy.case.id)

        path = shift_study(study, arguments.raw, shifts, count)
    shifted = load_study(path, arguments.root)
    say(f"{path}: {len(shifted.cases)} cases, held out in the domains {', '.join(sorted(_domains(shifted)))}")
    document = {"action": "shift", "study": shifted.name, "path": str(path), "cases": len(shifted.cases)}
    return document | {"domains": _domains(shifted)}


def _domains(study: Study) -> dict[str, int]:
    return dict(Counter(case.domain for case in study.cases))


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    study = read_study(Path(arguments.study), arguments.root)
    document: dict[str, Any] = {
        "study": study.name,
        "sound": True,
        "cases": len(study.cases),
        "problems": [],
        "splits": {split: len(study.split(split)) for split in SPLITS},
        "domains": _domains(study),
        "channels": list(study.channels),
    }
    with progress("cases") as bar:
        task = bar.add_task(f"check {study.name}", total=len(study.cases), note="")
        try:
            require_sound(study, lambda case: bar.update(task, advance=1, note=case.id))
        except StudyError as error:
            error.document = document | {"sound": False, "problems": list(error.problems)}
            raise
    subjects = len({case.subject for case in study.cases})
    say(f"study {study.name} is sound: {len(study.cases)} cases of {subjects} subjects")
    say("  " + ", ".join(f"{split} {count}" for split, count in document["splits"].items()))
    if study.channels:
        say(f"  channels {', '.join(study.channels)}")
    say("  domains " + ", ".join(f"{domain} {count}" for domain, count in document["domains"].items()))
    return document


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    benchmark = benchmark_of(arguments.study)
    flags = frozenset([INCLUDE_VA_CT] if arguments.include_va_ct else [])
    with progress("files") as bar:
        task = bar.add_task(f"convert {benchmark.name}", total=None, note="")
        made = convert(
            benchmark, arguments.raw, arguments.out, flags, lambda n, total: bar.update(task, completed=n, total=total)
        )
    splits = {split: [item for item in made.items if item.split == split] for split in SPLITS}
    for line in made.warnings:
        warn(line)
    say(f"study {benchmark.name}: {len(made.items)} cases of {len({item.subject for item in made.items})} subjects")
    for split, items in splits.items():
        domains = ", ".join(f"{domain} {count}" for domain, count in Counter(item.domain for item in items).items())
        say(f"  {split}: {len({item.subject for item in items})} subjects, {domains}")
    say(f"  files written {made.written}, already there {made.reused}; everything else stays in {arguments.raw}")
    say(f"next: dropgen study check {made.study}")
    return {
        "action": "convert",
        "benchmark": benchmark.name,
        "study": str(made.study),
        "manifest": str(made.study.with_name(MANIFEST)),
        "splits": {split: len(items) for split, items in splits.items()},
        "domains": dict(Counter(item.domain for item in made.items)),
        "written": made.written,
        "reused": made.reused,
        "warnings": list(made.warnings),
    }
