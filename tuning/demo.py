"""`dropgen demo`: makes a multi-domain study and runs the whole main job on it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dropgen.config import Experiment, load_experiment, with_seeds
from dropgen.console import say
from dropgen.errors import StudyError
from dropgen.features.studies.phantom import make_phantom_study
from dropgen.manifest import REPOSITORY
from dropgen.platform.evaluation.results import group_rows
from dropgen.tuning.run import finish, run
from dropgen.tuning.summary import BASELINE

EXPERIMENTS = REPOSITORY / "configs" / "experiments"
CONTRAST_DOMAINS = ("inverted", "remapped")
QUALITY_DOMAINS = ("noisy", "biased")


def demo_experiment(root: Path, overrides: Sequence[str] = (), name: str = "demo", *, make: bool = True) -> Experiment:
    """An experiment on the demo study, which is written to `<root>/demo/study` where it is not there yet.

    Args:
        root: Output root.
        overrides: `--section.key=value`.
        name: Of the experiment.
        make: Whether a missing study is written; else it is refused.

    Raises:
        StudyError: It is missing and not to be made.
    """
    experiment = load_experiment(EXPERIMENTS / f"{name}.yaml", root, overrides)
    if make:
        make_phantom_study(root / "demo" / "study")
    elif not experiment.study.exists():
        raise StudyError(
            f"{experiment.study} does not exist and a dry run writes nothing; run dropgen demo once, or name an "
            "experiment whose study is there"
        )
    return experiment


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen demo`."""
    experiment = demo_experiment(arguments.root, arguments.overrides)
    if arguments.seeds is not None:
        experiment = with_seeds(experiment, arguments.seeds)
    summary = run(experiment, arguments.root, address=arguments.address)
    sentence = contrast_sentence(summary["table"])
    with (arguments.root / experiment.name / "results.md").open("a") as page:
        page.write(f"\n{sentence}\n")
    finish(summary)
    say(sentence)
    return summary


def contrast_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the chosen DropGen gains over ERM where only the intensity of the tissues changed, and what it costs."""
    groups = group_rows(rows)
    (chosen,) = (group for group in groups if group.selected)
    erm = next((group for group in groups if group.method == BASELINE), None)
    if erm is None:
        return f"{chosen.name} was not compared with ERM here."
    gains = {
        domain: 100 * ((chosen.spread(domain).mean or 0.0) - (erm.spread(domain).mean or 0.0))
        for domain in ("source_dice", *CONTRAST_DOMAINS, *QUALITY_DOMAINS)
    }
    told = ", ".join(f"{gains[domain]:+.1f} on {domain}" for domain in QUALITY_DOMAINS)
    return (
        f"Against ERM, {chosen.name} gains {fmean(gains[domain] for domain in CONTRAST_DOMAINS):+.1f} Dice points on "
        f"the mean of {' and '.join(CONTRAST_DOMAINS)}, where only contrast changed; {gains['source_dice']:+.1f} on "
        f"the source, {told}."
    )


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["demo", *sys.argv[1:]]))
