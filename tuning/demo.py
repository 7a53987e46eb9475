"""`dropgen demo`: makes a multi-domain study and runs the whole main job on it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from typing import Any

from dropgen.config import Experiment, load_experiment
from dropgen.console import say
from dropgen.errors import ConfigError
from dropgen.features.studies.phantom import make_phantom_study
from dropgen.manifest import REPOSITORY
from dropgen.tuning.run import finish, run
from dropgen.tuning.table import markdown

EXPERIMENT = REPOSITORY / "configs" / "experiments" / "demo.yaml"
FIRST_SEED = 42


def demo_experiment(root: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The demo experiment, its study written to `<root>/demo/study` where it is not there yet."""
    experiment = load_experiment(EXPERIMENT, root, overrides)
    make_phantom_study(root / "demo" / "study")
    return experiment


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen demo`."""
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds = {arguments.seeds}: name at least one seed")
    experiment = demo_experiment(arguments.root, arguments.overrides)
    if arguments.seeds > 1 or len(experiment.seeds) == 1:
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + arguments.seeds))
        experiment = experiment.model_copy(update={"seeds": seeds})
    summary = run(experiment, arguments.root, address=arguments.address)
    page = arguments.root / experiment.name / "demo.md"
    page.write_text(markdown(summary))
    finish(summary)
    say(f"the table as text: {page}")
    return summary


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["demo", *sys.argv[1:]]))
