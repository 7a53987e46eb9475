"""The verbs `study check`, `study convert` and `study shift`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from dropgen.console import progress, say, warn
from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.benchmarks import benchmark_of
from dropgen.features.studies.benchmarks.amos import INCLUDE_VA_CT
from dropgen.features.studies.check import require_sound
from dropgen.features.studies.convert import convert
from dropgen.features.studies.shift import choose_shifts, shift_study
from dropgen.features.studies.sources import MANIFEST
from dropgen.features.studies.study import SPLITS, Study, load_study, read_study


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks a study, makes one of a benchmark's archive, or one with shifted copies of another's held-out cases.

    Raises:
        ConfigError: An argument is missing or belongs to the other action.
        StudyError: The study is not sound or the archive not as published; names every problem.
    """
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
        raise ConfigError("study check takes one study YAML and nothing else")
    return _check(arguments)


def _shift(arguments: argparse.Namespace) -> dict[str, Any]:
    study = load_study(Path(arguments.study), arguments.root)
    shifts = choose_shifts(arguments.shifts)
    with progress("copies") as bar:
        task = bar.add_task(f"shift {study.name}", total=None, note="")
        path = shift_study(
            study, arguments.raw, shifts, lambda copy: bar.update(task, advance=1, note=copy.shift or copy.case.id)
        )
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
