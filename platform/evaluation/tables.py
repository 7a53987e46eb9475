"""How the measures beside Dice are headed and printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dropgen.manifest import read_json
from dropgen.platform.evaluation.results import ABSENT, NAMES, Group

# Measure to its heading and its unit.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "nsd": ("NSD", "%"),
    "hd95_mm": ("HD95", "mm"),
    "volume_error_ml": ("volume error", "ml"),
    "volume_error_relative": ("volume error, share", "%"),
    "cldice": ("clDice", "%"),
    "missed": ("missed", "% of present"),
    "false_positive": ("false positive", "% of absent"),
    "false_positive_voxels": ("falsely found", "voxels"),
}
COUNTED = {"hd95_mm": "{:.1f}", "volume_error_ml": "{:.2f}", "false_positive_voxels": "{:.0f}"}


COLUMN_HEADER = ("method", "chosen", "last checkpoint", "source rule", "oracle (not a result)")


def columns_cells(lines: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Cells under `COLUMN_HEADER`: Dice x 100 on unseen domains, and whose it is where it is not the chosen model's."""
    return [
        [NAMES.get(line["method"], line["method"]), *(_way(line, way) for way in ("chosen", "last", "source_rule")),
         f"{_way(line, 'oracle')} of {line['of']}" if line["oracle"] else ABSENT]
        for line in lines
    ]  # fmt: skip


def _way(line: Mapping[str, Any], way: str) -> str:
    pick = line[way]
    if pick is None:
        return ABSENT
    error = "" if pick["se"] is None else f" ± {100 * pick['se']:.1f}"
    return f"{100 * pick['unseen']:.1f}{error} ({pick['name']})"


def shown(value: float | None, measure: str) -> str:
    """A value as its column prints it; shares in percent."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return COUNTED.get(measure, "{:.1f}").format(value if measure in COUNTED else 100 * value)


def measure_notes(groups: Iterable[Group], placeholder_spacing: Sequence[str]) -> list[str]:
    """What the reader must know of the measures: the tolerance, where there are no mm, what has none at all."""
    found = [(group.name, _how(row)) for group in groups for row in group.rows]
    known = [how for _, how in found if how is not None]
    lines = []
    if known:
        tolerances = " and ".join(f"{value:g}" for value in sorted({how["nsd_tolerance_mm"] for how in known}))
        lines.append(
            f"NSD at a tolerance of {tolerances} mm. HD95 is of the classes that were found: read it beside “missed”, "
            "where NSD is 0. Volume errors are amounts."
        )
    if placeholder_spacing:
        lines.append(
            f"Nothing in mm or ml of {', '.join(placeholder_spacing)}: the spacing in those files is a placeholder."
        )
    if missing := sorted({name for name, how in found if how is None}):
        lines.append(
            f"Not available for {', '.join(missing)}: tested before these measures were taken. "
            "`dropgen run` tests anew."
        )
    return lines


def _how(row: Mapping[str, Any]) -> dict[str, Any] | None:
    measures: dict[str, Any] | None = (read_json(Path(row["evaluation"]) / "summary.json") or {}).get("measures")
    return measures
