"""`dropgen compare`: by how much the results of two experiments differ, and whether the second is as good."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dropgen import console
from dropgen.errors import ConfigError
from dropgen.platform.evaluation.bootstrap import DRAWS
from dropgen.platform.evaluation.early_stop import judge, verdict_lines
from dropgen.platform.evaluation.findings import cautions, interval, signed
from dropgen.platform.evaluation.paired import (
    LEAST_IN_DOMAIN,
    LEAST_SUBJECTS,
    Paired,
    Results,
    pair,
    read_results,
    read_summary,
    read_trained,
)
from dropgen.platform.evaluation.results import ABSENT, group_rows, points, rules_note

LEAST_WIDTH = 132  # characters; a pipe counts as 80, which would wrap every cell
DIGITS = 2  # two ways to the same end may be tenths of a point apart
JUDGED = {True: "non-inferior", False: "not shown", None: ABSENT}


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen compare A B`.

    Raises:
        ConfigError: The margin is no positive number, or the two cannot be paired.
        CheckpointError: One of them was not run to its end.
    """
    margin: float | None = arguments.margin
    if margin is not None and not (math.isfinite(margin) and margin > 0):
        raise ConfigError(f"--margin = {margin}: name the Dice points that may be lost, more than 0, as in --margin 1")
    if arguments.search:
        return _searches(arguments.a, arguments.b, arguments.root)
    a, b = (read_results(name, arguments.root) for name in (arguments.a, arguments.b))
    found = pair(a, b, arguments.method, None if margin is None else margin / 100)
    notes = [*_rules(a, b), *(_sentence(one, margin) for one in found), *_limits(found, margin)]
    console.say(_table(found, f"Dice x 100: A = {a.name}, B = {b.name}", margin))
    for note in notes:
        console.say(note)
    return {
        "a": a.name,
        "b": b.name,
        "margin": None if margin is None else margin / 100,
        "draws": DRAWS,
        "methods": [asdict(one) for one in found],
        "search": None,
        "notes": notes,
    }


def _searches(grid: str, stopped: str, root: Path) -> dict[str, Any]:
    """What early stopping saved, and whether it chose as well as the whole grid.

    Raises:
        ConfigError: The second stopped nothing, or the first did or lacks a setting.
        CheckpointError: One of them was not run to its end.
    """
    (_, whole), (_, partly) = (read_summary(name, root) for name in (grid, stopped))
    record = partly.get("early_stop")
    if record is None or whole.get("early_stop") is not None:
        raise ConfigError(
            f"--search compares a whole grid with a search that stops trials: run '{grid}' with search.scheduler=none "
            f"and '{stopped}' with search.scheduler=asha"
        )
    found = judge(read_trained(grid, root), record)
    for line in verdict_lines(found, record["scheduler"], grid, stopped):
        console.say(line)
    return {
        "a": grid, "b": stopped, "margin": None, "draws": DRAWS, "methods": [],
        "search": [one.to_json() for one in found], "notes": [],
    }  # fmt: skip


def _table(found: Sequence[Paired], title: str, margin: float | None) -> str:
    table = Table("method", "domain", title=title)
    for name in ("A", "B", "B − A", "95% interval", "subjects", "seeds"):
        table.add_column(name, justify="right")
    if margin is not None:
        table.add_column(f"B at a margin of {margin:g}")
    for one in found:
        for each in one.differences:
            cells = [
                one.method if each is one.differences[0] else "",
                each.place,
                points(each.a),
                points(each.b),
                signed(each.difference, DIGITS),
                interval(each, DIGITS),
                str(each.n),
                str(len(one.seeds)),
            ]
            judged = [] if margin is None else [JUDGED[each.non_inferior]]
            table.add_row(*cells, *judged, style="bold" if each is one.overall else None)
        table.add_section()
    terminal = Console()
    terminal.width = max(terminal.width, LEAST_WIDTH)
    with terminal.capture() as text:
        terminal.print(table)
    return text.get().rstrip()


def _sentence(one: Paired, margin: float | None) -> str:
    mean = one.overall
    told = (
        f"{one.method}: B − A is {signed(mean.difference, DIGITS)} points on the {mean.place} (95% interval "
        f"{interval(mean, DIGITS)}; n = {_count(mean.n, 'subject')}, {_count(len(one.seeds), 'seed')})"
    )
    if margin is None or mean.non_inferior is None:
        return f"{told}."
    lost = f"{margin:g} point{'' if margin == 1 else 's'}"
    return f"{told}: {'non-inferior, B loses less than' if mean.non_inferior else 'B may lose as much as'} {lost}."


def _rules(*both: Results) -> Iterator[str]:
    """What intensities were scaled by, where it is on record; a method's own rule is in its label."""
    for results in both:
        if results.intensity is not None:
            groups = group_rows(line.row for lines in results.lines.values() for line in lines.values())
            yield f"{results.name}: {rules_note(groups, results.intensity)}"


def _limits(found: Sequence[Paired], margin: float | None) -> Iterator[str]:
    means = [one.overall for one in found]
    seeds = [len(one.seeds) for one in found]
    yield from cautions(min(mean.n for mean in means), seeds, all(mean.low is not None for mean in means))
    if margin is not None and any(each.non_inferior is None for one in found for each in one.differences):
        yield (
            f"Fewer than {LEAST_SUBJECTS} subjects, or {LEAST_IN_DOMAIN} in a domain, are not judged: the interval "
            "of so few is too narrow."
        )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
