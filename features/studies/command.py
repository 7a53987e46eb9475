"""The verb `study`: check, shift."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from dropgen.console import progress, say
from dropgen.errors import StudyError
from dropgen.features.studies.check import require_sound
from dropgen.features.studies.shift import choose_shifts, shift_study
from dropgen.features.studies.study import SPLITS, Study, load_study, read_study


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen study check` and `dropgen study shift`."""
    return {"check": _check, "shift": _shift}[arguments.action](arguments)


def _shift(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a study with shifted copies of the held-out cases.

    Raises:
        StudyError: The study is broken, or there is no folder to write to.
    """
    study = load_study(arguments.study, arguments.root)
    if arguments.out is None:
        raise StudyError("study shift needs a folder for the copies: --out FOLDER")
    shifts = choose_shifts(arguments.shifts)
    with progress("copies") as bar:
        task = bar.add_task(f"shift {study.name}", total=None, note="")
        path = shift_study(
            study, arguments.out, shifts, lambda copy: bar.update(task, advance=1, note=copy.shift or copy.case.id)
        )
    shifted = load_study(path, arguments.root)
    say(f"{path}: {len(shifted.cases)} cases, held out in the domains {', '.join(sorted(_domains(shifted)))}")
    return {"study": shifted.name, "path": str(path), "cases": len(shifted.cases), "domains": _domains(shifted)}


def _domains(study: Study) -> dict[str, int]:
    return dict(Counter(case.domain for case in study.cases))


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks every case of a study.

    Raises:
        StudyError: The study is not sound; names every problem.
    """
    study = read_study(arguments.study, arguments.root)
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
