"""The report's charts, drawn with matplotlib's object interface: no global figure, no display."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1d2733", "#66727f", "#e3e7eb"
METHOD_COLOURS = {"erm": "#7b8794", "rep_only": "#d08a1d", "dropgen": "#0b7a75"}
OTHER_COLOURS = ("#5b6ee1", "#b0467a", "#6b8e23", "#8d5a2b", "#3aa0c9", "#c94f3a", "#7d5fb2", "#a3a12b")
SOURCE_MARK, UNSEEN_MARK = "o", "D"


@dataclass(frozen=True)
class Line:
    """One row of the dot chart: mean Dice per domain over seeds, in percent points."""

    label: str
    selected: bool
    source: float | None
    targets: Mapping[str, float]


def curves(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Training loss and validation Dice against steps.

    Args:
        results: `result.json` of each trial.
        names: Legend entry of each trial; trials of one name share a line style.
    """
    figure = Figure(figsize=(10.4, 3.7), layout="constrained")
    panels = figure.subplots(1, 2)
    styles = line_styles([(result["method"], name) for result, name in zip(results, names, strict=True)])
    drawn: dict[str, Any] = {}
    for result, name in zip(results, names, strict=True):
        colour, dash = styles[name]
        for axis, curve, scale in zip(panels, ("loss", "validation"), (1.0, 100.0), strict=True):
            points = np.array(result["curve"][curve], dtype=np.float64).reshape(-1, 2)
            marker = "." if curve == "validation" else ""
            (line,) = axis.plot(
                points[:, 0], scale * points[:, 1], color=colour, linestyle=dash, lw=1.4, marker=marker, ms=4, alpha=0.9
            )
            drawn.setdefault(name, line)
    for axis, title in zip(panels, ("Training loss (Dice + cross-entropy)", "Validation Dice, percent"), strict=True):
        style_axis(axis)
        axis.set_title(title, fontsize=10.5, color=INK, loc="left", pad=8)
        axis.set_xlabel("step", fontsize=9, color=MUTED)
        axis.set_xlim(left=0)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=min(len(drawn), 6), frameon=False,
        fontsize=9, labelcolor=INK,
    )  # fmt: skip
    return figure


def domain_dots(lines: Sequence[Line]) -> Figure:
    """Dice of every method on the source and on each unseen domain: one row per method, one dot per domain."""
    domains = sorted({name for line in lines for name in line.targets})
    colours = ("#d1495b", "#3d6fb6", "#e09f3e", "#6a9a5b", "#8e6bbf", "#4aa6a6")
    figure = Figure(figsize=(10.4, 0.9 + 0.42 * len(lines)), layout="constrained")
    axis = figure.subplots()
    for height, line in enumerate(reversed(lines)):
        values = [*line.targets.values(), *([] if line.source is None else [line.source])]
        if values:
            axis.plot([min(values), max(values)], [height, height], color=RULE, lw=4, solid_capstyle="round", zorder=1)
        if line.source is not None:
            axis.scatter(line.source, height, s=62, color=INK, marker=SOURCE_MARK, zorder=3, label="source")
        for name, value in line.targets.items():
            colour = colours[domains.index(name) % len(colours)]
            axis.scatter(value, height, s=46, color=colour, marker=UNSEEN_MARK, zorder=3, label=name)
    axis.set_yticks(range(len(lines)), [line.label for line in reversed(lines)], fontsize=9.5, color=INK)
    for label, line in zip(axis.get_yticklabels(), reversed(lines), strict=True):
        label.set_fontweight("bold" if line.selected else "normal")
    axis.set_ylim(-0.6, len(lines) - 0.4)
    axis.set_xlabel("Dice, percent", fontsize=9, color=MUTED)
    style_axis(axis)
    axis.grid(axis="y", visible=False)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside upper center", ncols=min(len(unique), 6), frameon=False,
        fontsize=9, labelcolor=INK,
    )  # fmt: skip
    return figure


def line_styles(entries: Sequence[tuple[str, str]]) -> dict[str, tuple[str, Any]]:
    """Colour by method and dashes within it, for each (method, name)."""
    dashes: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2.5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
    others = [method for method in dict.fromkeys(method for method, _ in entries) if method not in METHOD_COLOURS]
    colours = METHOD_COLOURS | {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    names: dict[str, list[str]] = {}
    for method, name in dict.fromkeys(entries):
        names.setdefault(method, []).append(name)
    return {
        name: (colours[method], dashes[position % len(dashes)])
        for method, members in names.items()
        for position, name in enumerate(members)
    }


def data_uri(figure: Figure, kind: str) -> str:
    """The figure as a `data:` address, "svg" for charts and "png" for pictures of voxels."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "dropgen"}):  # else two drawings of the same data differ in their ids
        figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def style_axis(axis: Axes) -> None:
    """A light grid and the bottom line, without ticks."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(RULE)
    axis.grid(color=RULE, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=MUTED)
