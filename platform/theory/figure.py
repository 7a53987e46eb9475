"""The figure of docs/theory.md: what the propositions promise on the toy, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dropgen.platform.evaluation.charts import INK, METHOD_COLOURS, MUTED, OTHER_COLOURS, style_axis
from dropgen.platform.theory.toy import FLIPPED, TRAINING, Toy, Weights

COLOURS = {
    "plain": METHOD_COLOURS["erm"],
    "structured_dropout": OTHER_COLOURS[0],
    "dropgen": METHOD_COLOURS["dropgen"],
    "best_stable": METHOD_COLOURS["rep_only"],
    "best_joint": INK,
}
P_SHOWN = 0.75

Rows = Sequence[Mapping[str, Any]]


def draw(toy: Toy, rows: Rows) -> Figure:
    """Two panels: weights at convergence against p, and exact risk against the environment.

    Args:
        toy: The toy whose rows are drawn.
        rows: Of `sweep`, of any toys.
    """
    rows = [row for row in rows if row["image_mean"] == toy.image_mean]
    figure = Figure(figsize=(10.4, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.get_layout_engine().set(w_pad=0.12)
    _weights(left, toy, rows)
    _risks(right, toy, rows)
    for axis in (left, right):
        style_axis(axis)
        axis.grid(axis="x", visible=False)
    return figure


def _weights(axis: Axes, toy: Toy, rows: Rows) -> None:
    for method, label in (("structured_dropout", "group masks"), ("dropgen", "DropGen")):
        ps = sorted({row["p"] for row in rows if row["predictor"] == method})
        for column, dash, marker in (("weight_stable", "-", "o"), ("weight_image", (0, (4, 1.6)), "s")):
            means = [_mean(rows, "plain", 0.0, column), *(_mean(rows, method, p, column) for p in ps)]
            axis.plot([0, *ps], means, color=COLOURS[method], linestyle=dash, marker=marker, ms=4.5, lw=1.8)
            feature = "S" if column == "weight_stable" else "U"
            _label(axis, ps[-1], means[-1], f"{feature}, {label}", COLOURS[method])
    axis.axhline(toy.best_stable.stable, color=COLOURS["best_stable"], lw=1.4, zorder=1)
    axis.text(
        0.0, toy.best_stable.stable, "S, best from S alone", color=COLOURS["best_stable"], fontsize=9, va="bottom"
    )
    _titles(axis, "Prop. 1: no masked optimum ignores S", "p, how much is masked", "weight in the logit")
    axis.set_xlim(-0.02, 1.02)
    axis.set_xticks([0, 0.25, 0.5, 0.75])
    axis.set_ylim(bottom=-0.12)


def _risks(axis: Axes, toy: Toy, rows: Rows) -> None:
    environments = np.linspace(TRAINING, FLIPPED, 81)

    def line(risk: Callable[[float], float], colour: str, label: str, dash: Any = "-") -> None:
        values = [risk(environment) for environment in environments]
        axis.plot(environments, values, color=colour, lw=1.8, linestyle=dash)
        _label(axis, FLIPPED, values[-1], label, colour, offset=-0.04)

    def at_convergence(predictor: str, p: float) -> Callable[[float], float]:
        weights = Weights(_mean(rows, predictor, p, "weight_image"), _mean(rows, predictor, p, "weight_stable"))
        return lambda environment: toy.risk(weights, environment)

    line(at_convergence("plain", 0.0), COLOURS["plain"], "plain training")
    line(at_convergence("structured_dropout", P_SHOWN), COLOURS["structured_dropout"], f"group masks, p = {P_SHOWN:g}")
    line(at_convergence("dropgen", P_SHOWN), COLOURS["dropgen"], f"DropGen, p = {P_SHOWN:g}")
    line(
        lambda environment: toy.risk(toy.best_stable, environment), COLOURS["best_stable"], "best from S alone,\nH(Y|S)"
    )
    line(lambda environment: toy.risk(toy.best_joint(environment), environment), COLOURS["best_joint"],
         "best from [U, S] of\neach environment", (0, (1, 1.2)))  # fmt: skip
    axis.axhline(math.log(2), color=MUTED, lw=0.9, zorder=1)
    axis.text(TRAINING, math.log(2), "a coin", color=MUTED, fontsize=9, va="bottom")
    _titles(axis, "Prop. 2: S alone is safe, and a ceiling", "environment", "risk, nats (log scale)")
    axis.set_yscale("log")
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    axis.minorticks_off()
    axis.set_xlim(1.05, -1.75)
    axis.set_xticks([1, 0, -1], ["training", "image is noise", "flipped"])


def _mean(rows: Rows, predictor: str, p: float, column: str) -> float:
    return fmean(row[column] for row in rows if row["predictor"] == predictor and row["p"] == p)


def _label(axis: Axes, x: float, y: float, text: str, colour: str, offset: float = 0.02) -> None:
    axis.text(x + offset, y, text, color=colour, fontsize=9, va="center")


def _titles(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10.5, color=INK, loc="left", pad=10)
    axis.set_xlabel(x, fontsize=9, color=MUTED)
    axis.set_ylabel(y, fontsize=9, color=MUTED)
