"""The table of an experiment, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from dropgen.manifest import write_json
from dropgen.platform.evaluation.findings import VERDICTS, chance, findings, interval, signed
from dropgen.platform.evaluation.results import ABSENT, Group, absent_name, group_rows, most_wait, ranking
from dropgen.platform.evaluation.sections import unseen_domains
from dropgen.platform.evaluation.significance import Significance, significance
from dropgen.platform.evaluation.tables import COLUMN_HEADER, COLUMNS, columns_cells, measure_notes, shown

LEAST_WIDTH = 132  # characters; a pipe counts as 80, which would wrap every cell
LOCAL = ("folder", "evaluation")  # paths of one machine


def terminal(rows: Sequence[Mapping[str, Any]], absent: Sequence[Mapping[str, Any]] = ()) -> str:
    """Dice x 100, one line per method and p, mean ± SE over seeds where there are several; then what is absent."""
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
    return "\n".join([text.get().rstrip(), *(f"{absent_name(row)}: {row['reason']}" for row in absent)])


def write_results(folder: Path, summary: Mapping[str, Any], placeholder_spacing: Sequence[str] = ()) -> Path:
    """Writes what can be published as it is: `results.md`, and the rows behind it as `results.json`."""
    rows = [{name: value for name, value in row.items() if name not in LOCAL} for row in summary["table"]]
    told = {name: summary[name] for name in ("experiment", "headline", "computed_seconds")}
    rest = {
        name: summary[name] for name in ("ranking", "comparison", "absent", "budget", "columns", "touches", "notes")
    }
    groups = group_rows(summary["table"])
    found = significance(groups)
    write_json(folder / "results.json", told | {"table": rows, "measures": _measures(groups)} | rest)
    page = folder / "results.md"
    more = [
        *columns_markdown(summary["columns"]),
        *measures_markdown(groups, placeholder_spacing),
        *pairs_markdown(found),
    ]
    page.write_text("\n".join([markdown(summary), *more]))
    return page


def measures_markdown(groups: Sequence[Group], placeholder_spacing: Sequence[str]) -> list[str]:
    """The measures beside Dice on unseen domains, as lines of Markdown."""
    header = ["method", *(f"{title}, {unit}" for title, unit in COLUMNS.values())]
    domains = unseen_domains(groups)
    lines = [[group.name, *(_amount(group, name, domains) for name in COLUMNS)] for group in groups]
    notes = measure_notes(groups, placeholder_spacing)
    told = [line for note in ("Means over the unseen domains, n subjects.", *notes) for line in (note, "")]
    return ["## Surfaces, volumes and empty classes", "", *told, *_markdown_table(header, lines), ""]


def columns_markdown(columns: Mapping[str, Any] | None) -> list[str]:
    """What other ways to choose would have given, as lines of Markdown."""
    if columns is None:
        return []
    table = _markdown_table(COLUMN_HEADER, columns_cells(columns["lines"]))
    return ["## Beside the chosen", "", columns["note"], "", *table, ""]


def pairs_markdown(found: Significance | None) -> list[str]:
    """Who is ahead of whom, by how much and how surely, as lines of Markdown."""
    if found is None:
        return []
    header = ["ahead", "of", "gain", "95% interval", "not ahead", "p (Holm)", "source", "verdict"]
    lines = [
        [pair.first, pair.second, signed(pair.gain), interval(pair), chance(pair.not_better, found.draws),
         ABSENT if pair.p is None else f"{pair.p:.3g}", signed(pair.source_gain), VERDICTS[pair.verdict]]
        for pair in found.pairs
    ]  # fmt: skip
    told = [line for sentence in findings(found) for line in (sentence, "")]
    return ["## Pairs of methods", "", *told, *_markdown_table(header, lines), ""]


def _measures(groups: Sequence[Group]) -> list[dict[str, Any]]:
    domains = unseen_domains(groups)
    return [
        {"name": group.name}
        | {name: {"mean": group.measured(name, domains).mean, "n": group.subjects(name, domains)} for name in COLUMNS}
        for group in groups
    ]


def _amount(group: Group, measure: str, domains: Sequence[str]) -> str:
    value = shown(group.measured(measure, domains).mean, measure)
    return value if value == ABSENT else f"{value} (n = {group.subjects(measure, domains)})"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return [f"| {' | '.join(header)} |", f"|---{'|--:' * (len(header) - 1)}|", *rows]


def markdown(summary: Mapping[str, Any]) -> str:
    """The finding, the table and what it cost, as a page."""
    rows = summary["table"]
    header = [*_header(rows), "minutes"]
    lines = [" | ".join([*cells, _minutes(group)]) for group, cells in _lines(rows)]
    empty = [ABSENT] * (len(header) - 3)
    lines += [" | ".join([absent_name(row), *empty, row["reason"], ABSENT]) for row in summary["absent"]]
    seeds = sorted({row["seed"] for row in rows})
    seconds = summary["computed_seconds"]
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    adapted = any(row["adaptation"] for row in rows)
    return "\n".join([
        f"# {summary['experiment']}",
        "",
        summary["headline"],
        "",
        f"Dice x 100, mean over subjects{', then mean ± SE over seeds' if len(seeds) > 1 else ''} "
        f"(seeds {', '.join(map(str, seeds))}). The chosen row has the best validation Dice of DropGen's; "
        f"minutes are those of one training{', or of tuning one test-time method' if adapted else ''}. "
        "The rank is by the unseen mean, ties share the best one.",
        "",
        f"| {' | '.join(header)} |",
        f"|---{'|--:' * (len(header) - 1)}|",
        *(f"| {line} |" for line in lines),
        "",
        *(line for note in (*summary["notes"], summary["touches"]["said"]) for line in (note, "")),
        f"Steps: {', '.join(map(str, sorted({row['steps'] for row in rows})))}, "
        f"at most {100 * most_wait(rows):.1f}% of their time spent waiting for data. "
        f"Time: {sum(seconds.values()):.0f} s ({spent}). "
        f"Commit: {', '.join(sorted({row['commit'] for row in rows}))}.",
        "",
    ])  # fmt: skip


def _header(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["method", "validation", "source", *_domains(rows), "unseen mean", "rank", "converged"]


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Group, list[str]]]:
    columns = ["val_dice", "source_dice", *_domains(rows), "unseen"]
    seeds = len({row["seed"] for row in rows})
    return [
        (
            place.group,
            [
                _name(place.group, seeds),
                *(_cell(place.group, column) for column in columns),
                ABSENT if place.rank is None else str(place.rank),
                _converged(place.group),
            ],
        )
        for place in ranking(group_rows(rows))
    ]


def _domains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row["target_dice"]})


def _name(group: Group, seeds: int) -> str:
    marks = ["chosen"] if group.selected else []
    marks += [f"{len(group.rows)} of {seeds} seeds"] if len(group.rows) < seeds else []
    return f"{group.name} ({', '.join(marks)})" if marks else group.name


def _cell(group: Group, column: str) -> str:
    spread = group.spread(column)
    if spread.mean is None:
        return ABSENT
    return f"{100 * spread.mean:.1f}" + ("" if spread.se is None else f" ± {100 * spread.se:.1f}")


def _minutes(group: Group) -> str:
    return f"{fmean(row['seconds'] for row in group.rows) / 60:.1f}"


def _converged(group: Group) -> str:
    late = sum(not row["converged"] for row in group.rows)
    if not late:
        return "yes"
    return "not converged" if late == len(group.rows) else f"not converged: {late} of {len(group.rows)}"
