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
from dropgen.platform.theory.toy import FLIPPED, NOISE, TRAINING, Toy, Weights

COLOURS = {
    "plain": METHOD_COLOURS["erm"],
    "structured_dropout": OTHER_COLOURS[0],
    "dropgen": METHOD_COLOURS["dropgen"],
    "best_stable": METHOD_COLOURS["rep_only"],
    "best_joint": INK,
}
P_SHOWN = 0.75
BACKGROUND = {"color": "white", "pad": 1.5}  # else grid lines run through the words

Rows = Sequence[Mapping[str, Any]]


def draw(toy: Toy, rows: Rows) -> Figure:
    """Two panels: weights at convergence against p, and exact risk against the environment.

    Args:
        toy: The toy whose rows are drawn.
        rows: Of `sweep`, of any toys.
    """
    rows = [row for row in rows if row["image_mean"] == toy.image_mean]
    figure = Figure(figsize=(10.0, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    _weights(left, toy, rows)
    _risks(right, toy, rows)
    for axis in (left, right):
        style_axis(axis)
        axis.grid(axis="x", visible=False)
    return figure


def _weights(axis: Axes, toy: Toy, rows: Rows) -> None:
    label_heights = {("weight_stable", "dropgen"): 0.07, ("weight_stable", "structured_dropout"): -0.07}
    for method, name in (("structured_dropout", "group masks"), ("dropgen", "DropGen")):
        ps = sorted({row["p"] for row in rows if row["predictor"] == method})
        for column, letter, dash, marker in (
            ("weight_stable", "S", "-", "o"),
            ("weight_image", "U", (0, (4, 1.6)), "s"),
        ):
            means = [_mean(rows, "plain", 0.0, column), *(_mean(rows, method, p, column) for p in ps)]
            axis.plot([0, *ps], means, color=COLOURS[method], linestyle=dash, marker=marker, ms=4.5, lw=1.8)
            height = means[-1] + label_heights.get((column, method), 0.0)
            _label(axis, ps[-1] + 0.025, height, f"{letter}, {name}", COLOURS[method])
    best = toy.best_stable.stable
    axis.axhline(best, color=COLOURS["best_stable"], lw=1.8, zorder=1)
    _label(axis, 0.775, best + 0.13, "S, best without U", COLOURS["best_stable"])
    _titles(
        axis,
        "Proposition 1: masked training does not ignore S",
        "p, how often inputs are masked",
        "weight at convergence",
    )
    axis.set_xlim(-0.02, 1.1)
    axis.set_xticks([0, 0.25, 0.5, 0.75], ["0\n(plain)", "0.25", "0.5", "0.75"])
    axis.set_ylim(-0.12, 3.2)


def _risks(axis: Axes, toy: Toy, rows: Rows) -> None:
    environments = np.linspace(TRAINING, FLIPPED, 81)

    def line(risk: Callable[[float], float], colour: str, label: str, dash: Any = "-") -> None:
        values = [risk(environment) for environment in environments]
        axis.plot(environments, values, color=colour, lw=1.8, linestyle=dash)
        _label(axis, FLIPPED - 0.05, values[-1], label, colour)

    def at_convergence(predictor: str, p: float) -> Callable[[float], float]:
        weights = Weights(_mean(rows, predictor, p, "weight_image"), _mean(rows, predictor, p, "weight_stable"))
        return lambda environment: toy.risk(weights, environment)

    def stable_alone(environment: float) -> float:
        return toy.risk(toy.best_stable, environment)

    def best_of_its_own(environment: float) -> float:
        return toy.risk(toy.best_joint(environment), environment)

    line(at_convergence("plain", 0.0), COLOURS["plain"], "plain training", (0, (5, 1.5)))
    line(at_convergence("structured_dropout", P_SHOWN), COLOURS["structured_dropout"], f"group masks,\np = {P_SHOWN:g}")
    line(at_convergence("dropgen", P_SHOWN), COLOURS["dropgen"], f"DropGen, p = {P_SHOWN:g}")
    line(stable_alone, COLOURS["best_stable"], "best without U:\nH(Y|S)")
    line(best_of_its_own, COLOURS["best_joint"], "best with U, chosen\nin each environment", (0, (1, 1.2)))
    axis.axhline(math.log(2), color=MUTED, lw=0.9, zorder=1)
    axis.text(TRAINING, 0.715, "a coin", color=MUTED, fontsize=9, va="bottom")
    _titles(
        axis,
        "Proposition 2: S alone is safe, but not the best",
        "environment: what the image means",
        "risk in nats, log scale",
    )
    axis.set_yscale("log")
    axis.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axis.minorticks_off()
    axis.set_ylim(0.13, 6)
    axis.set_xlim(1.06, -2.05)
    axis.set_xticks([TRAINING, NOISE, FLIPPED], ["as in\ntraining", "nothing", "the\nopposite"])


def _mean(rows: Rows, predictor: str, p: float, column: str) -> float:
    return fmean(row[column] for row in rows if row["predictor"] == predictor and row["p"] == p)


def _label(axis: Axes, x: float, y: float, text: str, colour: str) -> None:
    axis.text(x, y, text, color=colour, fontsize=9.5, va="center", linespacing=1.1, bbox=BACKGROUND)


def _titles(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=11, color=INK, loc="left", pad=10)
    axis.set_xlabel(x, fontsize=9.5, color=MUTED)
    axis.set_ylabel(y, fontsize=9.5, color=MUTED)
