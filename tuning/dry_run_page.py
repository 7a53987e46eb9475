"""`--dry-run` of `dropgen run` and `dropgen search`: the table of what is left, its document, and the refusal."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal as size_text
from rich.table import Table

from dropgen.config import Experiment, load_experiment, with_seeds
from dropgen.console import progress, say
from dropgen.errors import ConfigError, DropGenError
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluate import held_out_cases
from dropgen.platform.external import trained_here
from dropgen.tuning.choice import PROPOSED
from dropgen.tuning.demo import demo_experiment
from dropgen.tuning.dry_run import DryRun, look_ahead, require_room
from dropgen.tuning.step_timing import Timing, time_work

LEAST_WIDTH = 110  # characters; a pipe counts as 80, which would wrap every line
NOT_MEASURED = "not measured"


def tell(
    experiment: Experiment,
    root: Path,
    *,
    measure: bool,
    tests: bool = True,
    unavailable: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Prints what is left to do; returns the document.

    Raises:
        DropGenError: What the run itself would refuse.
        ResourceError: The disk is too small.
    """
    found = look_ahead(experiment, root, tests=tests, unavailable=unavailable)
    timing = _time(found) if measure else None
    say(page(found, timing))
    document = _document(found, timing)
    try:
        _require_programs(found)
        require_room(found)
    except DropGenError as error:
        error.document = document
        raise
    return document


def tell_search(arguments: argparse.Namespace) -> dict[str, Any]:
    """The dry run of a search without `--methods`, which trains and does not test."""
    root = arguments.root
    if arguments.experiment is None:
        experiment = demo_experiment(root, arguments.overrides, make=False)
        methods = tuple(method for method in experiment.methods if method.name == PROPOSED)
        experiment = experiment.model_copy(update={"methods": methods})
    else:
        experiment = trained_here(load_experiment(arguments.experiment, root, arguments.overrides))
    if arguments.seeds is not None:
        experiment = with_seeds(experiment, arguments.seeds)
    return tell(experiment, root, measure=arguments.measure, tests=False)


def page(found: DryRun, timing: Timing | None) -> str:
    """Two tables, what is left per method and what it takes, and what they leave open."""
    lines = [_render(_methods(found, timing)), _render(_totals(found, timing))]
    lines += [f"{row['method']}: {row['reason']}" for row in found.unavailable]
    lines += [f"{work.name}: {_count(work.trials - work.done, 'trial')} of another program, at a cost unknown here"
              for work in found.externals]  # fmt: skip
    for work in found.externals:
        lines += [f"  {command}" for command in work.commands]
    if found.adaptations:
        lines.append("test-time methods: a prediction of theirs takes longer than a plain one, at a cost unknown here")
    return "\n".join([*lines, *found.notes, "nothing was written"])


def hours(found: DryRun, timing: Timing) -> dict[str, float]:
    """Of every part that is left, one thing at a time: `store`, `training`, `validation`, `evaluation`."""
    experiment = found.bench.experiment
    rule, every = experiment.selection.rule, experiment.training.validate_every
    held_out = len(held_out_cases(found.bench.study, rule))
    validating = len(validation_cases(found.bench.study, rule))
    seconds = {
        "store": found.store_cases * timing.case,
        "training": sum(work.steps * timing.steps[work.name] for work in found.methods if work.steps),
        "validation": sum(
            -(-work.steps // every) * validating * timing.predictions[work.name] for work in found.methods if work.steps
        ),
        "evaluation": sum(
            work.tests * held_out * timing.predictions[work.name] for work in found.methods if work.tests
        ),
    }
    return {name: value / 3600 for name, value in seconds.items()}


def _time(found: DryRun) -> Timing:
    trials = {work.name: work.example for work in found.methods if work.steps or work.tests}
    with progress("methods") as bars:
        bar = bars.add_task("measure", total=len(trials), note="")
        return time_work(found.bench, trials, lambda name: bars.update(bar, advance=1, note=name))


def _require_programs(found: DryRun) -> None:
    """Raises ConfigError where a baseline is another program's that is not installed, as the run itself would."""
    for work in found.externals:
        if work.unavailable is not None:
            raise ConfigError(f"method {work.name} cannot run: {work.unavailable}")


def _methods(found: DryRun, timing: Timing | None) -> Table:
    table = Table("method", title=f"{found.bench.experiment.name}: what is left to do", title_justify="left")
    for name in ("sets x seeds", "trials", "done", "begun", "steps left", "s a step", "models to test"):
        table.add_column(name, justify="right")
    for work in found.methods:
        step = timing.steps.get(work.name) if timing else None
        size = f"{work.sets} x {work.seeds}"
        cells = (work.trials, work.done, work.begun, work.steps)
        table.add_row(work.name, size, *map(str, cells), "-" if step is None else f"{step:.3g}", str(work.tests))
    for one in found.externals:
        table.add_row(one.name, "", str(one.trials), str(one.done), "", "unknown", "unknown", "")
    for each in found.adaptations:
        table.add_row(f"+ {each.label}", "", "", "", "", "", "unknown", str(each.models))
    return table


def _totals(found: DryRun, timing: Timing | None) -> Table:
    rule = found.bench.experiment.selection.rule
    table = Table("in all", show_header=False)
    table.add_column("")
    table.add_column("")
    trials = sum(work.trials - work.done for work in found.methods)
    held_out, validating = held_out_cases(found.bench.study, rule), validation_cases(found.bench.study, rule)
    table.add_row("training steps", f"{found.steps}", f"in {_count(trials, 'trial')}")
    table.add_row("validation", f"{found.validations}", f"predictions, {_count(len(validating), 'case')} each time")
    table.add_row("evaluation", f"{found.evaluations}", f"predictions, {_count(len(held_out), 'case')} a model")
    if found.adaptations:
        predictions = sum(work.predictions for work in found.adaptations)
        table.add_row("test-time methods", f"{predictions}", "predictions, those that tune them included")
    table.add_section()
    lacking = f"{found.store_cases} of {_count(len(found.bench.study.cases), 'case')} to compute"
    table.add_row("disk: store", size_text(found.disk["store"]), f"{lacking}, {found.bench.store.location}")
    table.add_row("disk: checkpoints", size_text(found.disk["checkpoints"]), "last and best of every trial")
    table.add_row("disk: masks", size_text(found.disk["masks"]), "as large as the labels are")
    table.add_row("disk: free", size_text(found.root_free), str(found.bench.root))
    if not found.same_disk and found.store_free is not None:
        table.add_row("disk: free for the store", size_text(found.store_free), found.bench.store.location)
    table.add_section()
    if timing is None:
        table.add_row("hours", NOT_MEASURED, "--measure takes a few steps of every method")
        return table
    parts = hours(found, timing)
    for name, value in parts.items():
        table.add_row(f"hours: {name}", f"{value:.2f}", "one thing at a time" if name == "store" else "")
    best = f"at best {_best(parts, timing):.2f} with {_count(timing.concurrent, 'trial')} at once"
    table.add_row("hours: in all", f"{sum(parts.values()):.2f}", best)
    return table


def _best(parts: Mapping[str, float], timing: Timing) -> float:
    return sum(parts.values()) / timing.concurrent


def _document(found: DryRun, timing: Timing | None) -> dict[str, Any]:
    bench = found.bench
    parts = None if timing is None else hours(found, timing)
    return {
        "dry_run": True,
        "experiment": bench.experiment.name,
        "methods": [
            {name: value for name, value in asdict(work).items() if name not in ("example", "weight_bytes")}
            | {"step_seconds": timing.steps.get(work.name) if timing else None}
            for work in found.methods
        ],
        "adaptations": [asdict(work) for work in found.adaptations],
        "externals": [asdict(work) for work in found.externals],
        "unavailable": [dict(row) for row in found.unavailable],
        "steps": found.steps,
        "validations": found.validations,
        "evaluations": found.evaluations,
        "store_cases": found.store_cases,
        "disk_bytes": dict(found.disk),
        "root_free_bytes": found.root_free,
        "store_free_bytes": found.store_free,
        "hours": parts,
        "least_hours": None if parts is None or timing is None else _best(parts, timing),
        "notes": list(found.notes),
    }


def _render(table: Table) -> str:
    console = Console(width=max(shutil.get_terminal_size().columns, LEAST_WIDTH))
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
