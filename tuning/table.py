"""The table of an experiment, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from dropgen.manifest import write_json
from dropgen.platform.evaluation.results import Group, group_rows

LEAST_WIDTH = 120  # characters; a pipe counts as 80, which would wrap every cell


def terminal(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dice x 100, one line per method and p, mean ± SE over seeds where there are several."""
    first, *others = _header(rows)
    table = Table(first, title="Dice x 100")
    for name in others:
        table.add_column(name, justify="right")
    for group, cells in _lines(rows):
        table.add_row(*cells, style="bold" if group.selected else None)
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip()


def write_results(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes what can be published as it is: `results.md`, and the rows behind it as `results.json`."""
    rows = [{name: value for name, value in row.items() if name != "folder"} for row in summary["table"]]
    told = {name: summary[name] for name in ("experiment", "headline", "computed_seconds")}
    write_json(folder / "results.json", told | {"table": rows})
    page = folder / "results.md"
    page.write_text(markdown(summary))
    return page


def markdown(summary: Mapping[str, Any]) -> str:
    """The finding, the table and what it cost, as a page."""
    rows = summary["table"]
    header = _header(rows)
    lines = [" | ".join([*cells, _minutes(group)]) for group, cells in _lines(rows)]
    seeds = sorted({row["seed"] for row in rows})
    seconds = summary["computed_seconds"]
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    return "\n".join([
        f"# {summary['experiment']}",
        "",
        summary["headline"],
        "",
        f"Dice x 100, mean over subjects{', then mean ± SE over seeds' if len(seeds) > 1 else ''} "
        f"(seeds {', '.join(map(str, seeds))}). The chosen row has the best validation Dice of DropGen's; "
        "minutes are those of one training.",
        "",
        f"| {' | '.join([*header, 'minutes'])} |",
        f"|---{'|--:' * len(header)}|",
        *(f"| {line} |" for line in lines),
        "",
        f"Steps: {', '.join(map(str, sorted({row['steps'] for row in rows})))}, "
        f"at most {100 * max(row['data_wait'] for row in rows):.1f}% of their time spent waiting for data. "
        f"Time: {sum(seconds.values()):.0f} s ({spent}). "
        f"Commit: {', '.join(sorted({row['commit'] for row in rows}))}.",
        "",
    ])  # fmt: skip


def _header(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["method", "validation", "source", *_domains(rows), "unseen mean", "converged"]


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Group, list[str]]]:
    columns = ["val_dice", "source_dice", *_domains(rows), "unseen"]
    return [
        (group, [_name(group), *(_cell(group, column) for column in columns), _converged(group)])
        for group in group_rows(rows)
    ]


def _domains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row["target_dice"]})


def _name(group: Group) -> str:
    return f"{group.name} (chosen)" if group.selected else group.name


def _cell(group: Group, column: str) -> str:
    spread = group.spread(column)
    if spread.mean is None:
        return "–"
    return f"{100 * spread.mean:.1f}" + ("" if spread.se is None else f" ± {100 * spread.se:.1f}")


def _minutes(group: Group) -> str:
    return f"{fmean(row['seconds'] for row in group.rows) / 60:.1f}"


def _converged(group: Group) -> str:
    late = sum(not row["converged"] for row in group.rows)
    if not late:
        return "yes"
    return "not converged" if late == len(group.rows) else f"not converged: {late} of {len(group.rows)}"
