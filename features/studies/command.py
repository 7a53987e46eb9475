"""The verb `study check`."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from dropgen.console import progress, say
from dropgen.errors import StudyError
from dropgen.features.studies.check import require_sound
from dropgen.features.studies.study import SPLITS, read_study


def command(arguments: argparse.Namespace) -> dict[str, Any]:
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
        "domains": dict(Counter(case.domain for case in study.cases)),
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
