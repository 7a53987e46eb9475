"""Curves of several methods against a level, one panel per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dropgen.platform.evaluation.charts import INK, MUTED, line_styles, style_axis

COLUMNS = 2  # of the legend's entries per panel


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Above it.
        axis: What the levels are, with their unit.
        curves: By a line's name, its levels and its values.
        value: What the values are, with their unit.
    """

    title: str
    axis: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    value: str = "Dice, percent"


def level_lines(panels: Sequence[Panel], methods: Mapping[str, str], share: bool = True) -> Figure:
    """Draws the panels side by side under one legend.

    Args:
        panels: Left to right.
        methods: By a line's name the method that gives its colour.
        share: Whether all panels have the same scale of values.
    """
    styles = line_styles([(method, name) for name, method in methods.items()])
    rows = -(-len(methods) // (COLUMNS * len(panels)))
    figure = Figure(figsize=(1.0 + 4.7 * len(panels), 3.5 + 0.22 * rows), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=share)[0]
    drawn = {}
    for axis, panel in zip(axes, panels, strict=True):
        for name, (levels, values) in panel.curves.items():
            colour, dash = styles[name]
            (drawn[name],) = axis.plot(levels, values, color=colour, linestyle=dash, lw=1.6, marker="o", ms=3.5)
        style_axis(axis)
        axis.set_title(panel.title, fontsize=10.5, color=INK, loc="left", pad=8)
        axis.set_xlabel(panel.axis, fontsize=9, color=MUTED)
    axes[0].set_ylabel(panels[0].value, fontsize=9, color=MUTED)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=COLUMNS * len(panels), frameon=False,
        fontsize=9, labelcolor=INK,
    )  # fmt: skip
    return figure
