"""Condition 1 during training: the cosine of the joint and the stable-only gradient, probe by probe.

The trials measure it themselves on one batch of validation crops (training/probe.py); this shows what they kept. A
cosine of 0 or more everywhere is what the paper's Proposition 1 asks for. Figure 8 of the DropGen paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dropgen.errors import NothingToAnalyseError
from dropgen.manifest import read_json
from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.charts import INK, MUTED, line_styles, style_axis

BINS = np.linspace(-1, 1, 41)


def analyse(scene: Scene) -> Analysed:
    """Every probe of every trial of every model that is given image and features.

    Raises:
        NothingToAnalyseError: No trial has probed; those that were trained before it was asked for have not.
    """
    rows: list[dict[str, Any]] = []
    for group in scene.groups:
        for row in group.rows if group.rows[0]["adaptation"] is None else ():
            result = read_json(Path(row["folder"]) / "result.json") or {}
            rows += [
                {"model": group.name, "method": group.method, "seed": row["seed"], "step": step,
                 "cosine": math.nan if cosine is None else cosine, "inner": inner}
                for step, cosine, inner in result.get("curve", {}).get("condition1", ())
            ]  # fmt: skip
    if not rows:
        raise NothingToAnalyseError(
            "no trial has measured it: it takes a method with image and features, trained with analyses: [condition1]"
        )
    return Analysed(rows, _draw(rows), _said(rows))


def _draw(rows: Sequence[dict[str, Any]]) -> Figure:
    names = {row["model"]: row["method"] for row in rows}
    styles = line_styles([(method, name) for name, method in names.items()])
    figure = Figure(figsize=(10.4, 3.9 + 0.2 * (len(names) // 4)), layout="constrained")
    along, counts = figure.subplots(1, 2, width_ratios=(3, 2))
    drawn = {}
    for name in names:
        colour, dash = styles[name]
        own = [row for row in rows if row["model"] == name]
        for seed in dict.fromkeys(row["seed"] for row in own):
            curve = [(row["step"], row["cosine"]) for row in own if row["seed"] == seed]
            (drawn[name],) = along.plot(*zip(*curve, strict=True), color=colour, linestyle=dash, lw=1.2, alpha=0.85)
        cosines = [row["cosine"] for row in own if math.isfinite(row["cosine"])]
        shares = np.full(len(cosines), 100 / max(len(cosines), 1))
        counts.hist(cosines, BINS, weights=shares, histtype="step", color=colour, linestyle=dash, lw=1.5)
    for axis, title, label in (
        (along, "Cosine of the two gradients during training", "step"),
        (counts, "All probes, percent by cosine", "cosine"),
    ):
        style_axis(axis)
        axis.set_title(title, fontsize=10.5, color=INK, loc="left", pad=8)
        axis.set_xlabel(label, fontsize=9, color=MUTED)
    along.axhline(0, color=MUTED, lw=0.8)
    along.set_ylim(-1.05, 1.05)
    counts.axvline(0, color=MUTED, lw=0.8)
    counts.set_xlim(-1, 1)
    counts.set_xticks([-1, -0.5, 0, 0.5, 1])
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _said(rows: Sequence[dict[str, Any]]) -> list[str]:
    said = []
    for name in dict.fromkeys(row["model"] for row in rows):
        found = [row["cosine"] for row in rows if row["model"] == name and math.isfinite(row["cosine"])]
        lost = sum(row["model"] == name for row in rows) - len(found)
        if found:
            share = 100 * sum(value >= 0 for value in found) / len(found)
            said.append(
                f"{name}: {share:.0f}% of {len(found)} probes are 0 or more, the mean is {np.mean(found):.2f} and the "
                f"least {min(found):.2f}" + (f"; {lost} had no gradient." if lost else ".")
            )
    return said
