"""One HTML page per experiment: the finding first, then the table, the curves and the pictures behind it.

Everything is inside the file (charts as SVG, pictures as PNG), so it can be mailed and kept.
"""

from __future__ import annotations

import argparse
import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from dropgen import __version__, console
from dropgen.config import Experiment, load_experiment
from dropgen.errors import CheckpointError
from dropgen.features.studies.study import Case, Study, load_study
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.manifest import read_json
from dropgen.platform.evaluation import charts
from dropgen.platform.evaluation.findings import findings
from dropgen.platform.evaluation.latex import tables
from dropgen.platform.evaluation.overlays import Picture, overlay
from dropgen.platform.evaluation.results import (
    ABSENT,
    Group,
    Row,
    ScoredCase,
    absent_name,
    chosen_of_each,
    group_rows,
    most_wait,
    points,
    ranking,
    scored_cases,
)
from dropgen.platform.evaluation.sections import measures_section, pairs_section
from dropgen.platform.evaluation.significance import significance
from dropgen.platform.evaluation.tables import COLUMN_HEADER, COLUMNS, columns_cells, measure_notes, shown
from dropgen.platform.evaluation.touches import read_touches, touches_said

TEMPLATE = Path(__file__).with_name("report.html.j2")
CASE_MEASURES = ("nsd", "hd95_mm", "volume_error_relative", "false_positive_voxels")
PATHS = ("model_uri", "tracking_uri", "store", "segmentations", "report")


def build_report(experiment: Experiment, root: Path) -> Path:
    """Writes `<root>/<name>/report.html` from `summary.json`, the manifest and the trials' folders.

    Raises:
        CheckpointError: The experiment has not been run to its end.
    """
    folder, summary = root / experiment.name, _summary(experiment, root)
    manifest = read_json(folder / "manifest.json") or {}
    context = {key: manifest.get(key) for key in ("commit", "command", "versions", "peak_rss_mb")} | summary
    context["touched"] = touches_said(read_touches(folder), summary["table"])  # later ones than the run's too
    study = load_study(experiment.study, root)
    page = folder / "report.html"
    return write_report(page, experiment, study, summary["table"], summary["headline"], context)


def build_latex(experiment: Experiment, root: Path) -> Path:
    """Writes `<root>/<name>/tables.tex` from what `build_report` reads.

    Raises:
        CheckpointError: The experiment has not been run to its end.
    """
    groups = group_rows(_summary(experiment, root)["table"])
    study, found = load_study(experiment.study, root), significance(groups)
    notes = [*measure_notes(groups, study.placeholder_spacing), *(findings(found) if found else ())]
    path = root / experiment.name / "tables.tex"
    path.write_text(tables(groups, found, notes), encoding="utf-8")
    return path


def _summary(experiment: Experiment, root: Path) -> dict[str, Any]:
    path = root / experiment.name / "summary.json"
    summary: dict[str, Any] | None = read_json(path)
    if summary is None:
        raise CheckpointError(f"{path} is missing; run: dropgen run EXPERIMENT.yaml --root {root}")
    return summary


def write_report(
    page: Path, experiment: Experiment, study: Study, rows: Sequence[Row], headline: str, context: Mapping[str, Any]
) -> Path:
    """Writes the page.

    Args:
        page: The HTML file.
        experiment: Printed with the page, so that it can be run again.
        study: Where images and ground truth are.
        rows: One per trial, and one for every test-time method on a trial.
        headline: The finding in one sentence.
        context: Beyond the table: what is `absent` from it, how often the test cases were `touched`, `columns` beside
            the chosen, `notes`, `replay`, `analyses`, `computed_seconds` per stage, `commit`, `command`, `versions`,
            and addresses.
    """
    groups = group_rows(rows)
    trained = [group for group in groups if group.rows[0]["adaptation"] is None]
    chosen = next((group for group in groups if group.selected), max(trained, key=lambda group: group.lead["val_dice"]))
    scored = scored_cases(Path(chosen.lead["evaluation"]))
    names = {id(row): group.name for group in groups for row in group.rows}
    results = [
        (read_json(Path(row["folder"]) / "result.json"), names[id(row)]) for group in trained for row in group.rows
    ]
    cases = {case.id: case for case in study.cases}
    found = significance(groups)
    columns = context.get("columns")
    pictures, note = _pictures(chosen, groups, scored, cases, study)
    values = {
        "name": experiment.name,
        "headline": headline,
        "study": study,
        "rule": experiment.selection.rule.replace("_", " "),
        "classes": study.classes[1:],
        "train_domains": sorted(study.train_domains),
        "counts": {split: len(study.split(split)) for split in ("train", "val", "test")},
        "cards": _cards(chosen, groups),
        "seeds": max(len(group.rows) for group in groups),
        **_table(groups, scored, study.train_domains),
        "dots": charts.data_uri(charts.domain_dots([_line(group) for group in groups]), "svg"),
        "curves": charts.data_uri(charts.curves(*zip(*results, strict=True)), "svg"),
        "absent": [(absent_name(row), row["reason"]) for row in context.get("absent", ())],
        "notes": context.get("notes", ()),
        "column_header": COLUMN_HEADER,
        "columns": columns and columns_cells(columns["lines"]),
        "columns_note": columns and columns["note"],
        "touched": context.get("touched", ""),
        **_replay(context.get("replay")),
        "analyses": [_analysis(one) for one in context.get("analyses", ())],
        "trained": _training_note(
            [row for group in trained for row in group.rows], most_wait([result for result, _ in results])
        ),
        "measures": measures_section(groups, study.placeholder_spacing),
        "pairs": pairs_section(found, groups),
        "pictures": pictures,
        "picture_note": note,
        "chosen": f"{chosen.name}, seed {chosen.lead['seed']}",
        "case_measures": [COLUMNS[name] for name in CASE_MEASURES],
        "cases": [_case_row(case, study.classes[1:]) for case in scored],
        "command": _command(context.get("command")),
        "facts": list(_facts(context)),
        "config": yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False),
        "version": __version__,
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(environment.from_string(TEMPLATE.read_text()).render(values), encoding="utf-8")
    return page


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen report`."""
    experiment = load_experiment(arguments.experiment, arguments.root, arguments.overrides)
    page = build_report(experiment, arguments.root)
    console.say(f"report: {page}")
    document = {"experiment": experiment.name, "report": str(page)}
    if not arguments.latex:
        return document
    paper = build_latex(experiment, arguments.root)
    console.say(f"tables: {paper}")
    return document | {"latex": str(paper)}


def _cards(chosen: Group, groups: Sequence[Group]) -> list[dict[str, str]]:
    method, _, options = chosen.name.partition(" ")
    cards = [
        {"value": method, "caption": f"{options + ', ' if options else ''}chosen by validation Dice"},
        {"value": points(chosen.spread("unseen").mean), "caption": "Dice on unseen domains"},
        {"value": points(chosen.spread("source_dice").mean), "caption": "Dice on the source domain"},
    ]
    baseline = next((group for group in chosen_of_each(groups) if group.method == "erm" and group is not chosen), None)
    if baseline is not None:
        ours, theirs = chosen.spread("unseen").mean, baseline.spread("unseen").mean
        if ours is not None and theirs is not None:
            gain = f"{100 * (ours - theirs):+.1f}".replace("-", "−")
            cards.append({"value": gain, "caption": "points over ERM on unseen domains"})
    return cards


def _table(groups: Sequence[Group], scored: Sequence[ScoredCase], train_domains: frozenset[str]) -> dict[str, Any]:
    domains = sorted({name for group in groups for row in group.rows for name in row["target_dice"]})
    columns = ["val_dice", "source_dice", *domains, *(["unseen"] if len(domains) > 1 else [])]
    spreads = {(group.name, column): group.spread(column) for group in groups for column in columns}
    best = {
        column: max((points(spreads[group.name, column].mean) for group in groups), key=_rank) for column in columns
    }
    first_domain = domains[0] if domains else None
    places = {place.group.name: ABSENT if place.rank is None else place.rank for place in ranking(groups)}

    def cell(group: Group, column: str) -> dict[str, Any]:
        spread = spreads[group.name, column]
        error = spread.se if len(group.rows) > 1 else _subject_error(group.rows[0], column)
        mean = points(spread.mean)
        return {
            "mean": mean,
            "error": None if error is None else points(error),
            "best": mean == best[column] and mean != ABSENT and len(groups) > 1,
            "bar": column in ("source_dice", first_domain, "unseen"),
        }

    return {
        "domains": [{"name": name, "subjects": _subjects(scored, {name})} for name in domains],
        "source_subjects": _subjects(scored, train_domains),
        "groups": [
            {
                "name": group.name,
                "selected": group.selected,
                "converged": all(row["converged"] for row in group.rows),
                "rank": places[group.name],
                "cells": [cell(group, column) for column in columns],
            }
            for group in groups
        ],
    }


def _rank(text: str) -> float:
    return -1.0 if text == ABSENT else float(text)


def _subject_error(row: Row, column: str) -> float | None:
    """Standard error over the subjects of one domain, where a single seed gives none over seeds."""
    domains = (read_json(Path(row["evaluation"]) / "summary.json") or {}).get("domains", {})
    if column == "source_dice":
        sources = [spread for name, spread in domains.items() if name not in row["target_dice"]]
        return sources[0]["se"] if len(sources) == 1 else None
    return domains[column]["se"] if column in domains else None


def _subjects(scored: Sequence[ScoredCase], domains: Iterable[str]) -> str:
    held = [case for case in scored if case.domain in set(domains) and math.isfinite(case.mean)]
    count = len({case.subject for case in held})
    splits = {case.split for case in held} - {"test"}
    return f"{count} subject{'' if count == 1 else 's'}" + (f" ({', '.join(sorted(splits))})" if splits else "")


def _line(group: Group) -> charts.Line:
    domains = sorted({name for row in group.rows for name in row["target_dice"]})
    means = {name: group.spread(name).mean for name in domains}
    source = group.spread("source_dice").mean
    return charts.Line(
        group.name,
        group.selected,
        None if source is None else 100 * source,
        {name: 100 * mean for name, mean in means.items() if mean is not None},
    )


def _training_note(rows: Sequence[Row], most_wait: float) -> str:
    steps = sorted({row["steps"] for row in rows})
    late = sum(not row["converged"] for row in rows)
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    what = "the last 20% of the steps added less than one point of validation Dice"
    return (
        f"{len(rows)} runs of {span} steps; {len(rows) - late} of them converged: {what}. "
        f"Waiting for data took at most {100 * most_wait:.1f}% of the training time."
    )


def _pictures(
    chosen: Group, groups: Sequence[Group], scored: Sequence[ScoredCase], cases: Mapping[str, Case], study: Study
) -> tuple[str | None, str]:
    ranked = [case for case in scored if case.split == "test" and math.isfinite(case.mean) and case.case in cases]
    if not ranked:
        return None, ""
    shown = {0: "best", len(ranked) // 2: "median", len(ranked) - 1: "worst"}
    compared = [*(group for group in chosen_of_each(groups) if group.method == "erm" and group is not chosen), chosen]
    folders = {group.name: Path(group.lead["folder"]) for group in compared}
    pictures = [case_picture(word, cases[ranked[place].case], folders) for place, word in shown.items()]
    names = study.labelling.names if study.ignore is None else (*study.labelling.names, "not labelled")
    note = (
        f"Of {len(ranked)} labelled test cases, ranked by the mean Dice of {chosen.name} (seed {chosen.lead['seed']})."
        " The slice shown is the one with most ground truth; Dice is that of the whole volume."
    )
    return charts.data_uri(overlay(pictures, names), "png"), note


def case_picture(title: str, case: Case, folders: Mapping[str, Path]) -> Picture:
    """A row for `overlay`: ground truth, then each model's mask with its Dice.

    Args:
        title: Stands before the case's id and domain.
        case: A labelled case that was evaluated.
        folders: Column title to the folder of an evaluated trial.
    """
    assert case.label is not None
    masks: dict[str, np.ndarray | None] = {"ground truth": read_mask(case.label).array}
    notes = {}
    for name, folder in folders.items():
        masks[name] = read_mask(folder / "evaluation" / "masks" / f"{case.id}.nii.gz").array
        (score,) = [scored for scored in scored_cases(folder / "evaluation") if scored.case == case.id]
        notes[name] = f"Dice {points(score.mean)}"
    return Picture(f"{title}: {case.id}\n{case.domain}", read_volume(case.image), masks, notes)


def _case_row(case: ScoredCase, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "case": case.case,
        "subject": case.subject,
        "domain": case.domain if case.split == "test" else f"{case.domain} ({case.split})",
        "dice": [points(case.dice[name]) for name in classes],
        "mean": points(case.mean),
        "measures": [shown(case.mean_of(name), name) for name in CASE_MEASURES],
    }


def _replay(replay: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figure, the sentences and the table's name of the comparison of replayed features; or why there is none."""
    if replay is None or replay["skipped"] or not Path(replay["figure"]).is_file():
        return {"replay": None, "replay_skipped": replay and replay["skipped"]}
    return {
        "replay": {
            "figure": _picture_uri(Path(replay["figure"])),
            "said": " ".join(replay["said"]),
            "volumes": replay["volumes"],
            "table": "/".join(Path(replay["csv"]).parts[-2:]),
        },
        "replay_skipped": None,
    }


def _analysis(found: Mapping[str, Any]) -> dict[str, Any]:
    """Its figure as an address and its table's name; or why there is none."""
    gone = None if found["skipped"] or Path(found["figure"]).is_file() else f"{found['figure']} is gone"
    skipped = found["skipped"] or gone
    return {
        "title": found["title"],
        "about": found["about"],
        "skipped": skipped,
        "said": " ".join(found["said"]),
        "figure": None if skipped else _picture_uri(Path(found["figure"])),
        "table": None if skipped else "/".join(Path(found["csv"]).parts[-2:]),
    }


def _picture_uri(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _command(words: object) -> str | None:
    if not isinstance(words, list) or not words:
        return None
    return " ".join(["dropgen", *(str(word) for word in words[1:])])


def _facts(context: Mapping[str, Any]) -> Iterable[tuple[str, str, bool]]:
    if context.get("commit"):
        yield "commit", str(context["commit"]), True
    if context.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in context["versions"].items()), False
    if context.get("computed_seconds"):
        stages = context["computed_seconds"]
        total = sum(stages.values())
        yield "time", f"{total:.0f} s: " + ", ".join(f"{name} {value:.0f} s" for name, value in stages.items()), False
    if context.get("peak_rss_mb"):
        yield "peak memory", f"{context['peak_rss_mb'] / 1024:.1f} GiB", False
    for key in PATHS:
        if context.get(key):
            yield key.replace("_", " ").replace("uri", "address"), str(context[key]), True
