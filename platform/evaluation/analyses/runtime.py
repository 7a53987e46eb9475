"""Run time: seconds of a training step per method, with and without its loader, and how much more than ERM that is.

Every method's network trains anew for a few steps on this machine, its weights thrown away. Table 7 of the DropGen
paper has 1000 steps on BraTS, which take what they take there: the percentages can be compared, the seconds cannot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.charts import INK, METHOD_COLOURS, MUTED, style_axis
from dropgen.platform.training.contender import STEPS, Contender

RUNS = 3
PAPER = {"dropgen": 665.9, "gin_ipa": 1842.7}  # s of 1000 steps
PAPER_ERM = 551.6
ERM = "erm"


def analyse(scene: Scene) -> Analysed:
    """Times every method's chosen hyperparameters: one batch that stays on the device, then batches as they come."""
    torch.set_num_threads(scene.bench.experiment.training.threads)
    rows: list[dict[str, Any]] = []
    models = scene.chosen_models
    for model in scene.track(models, len(models)):
        contender = Contender.of(scene.bench, model.trial, scene.device)
        resident = [_resident(contender) for _ in range(RUNS)]
        for _ in range(RUNS):
            contender.run()
        rows.append({
            "model": model.name, "method": model.row["method"], "features": contender.features, "runs": RUNS,
            "steps_of_a_run": STEPS,
            "resident_s": fmean(resident), "resident_sd": stdev(resident),
            "loader_s": fmean(contender.seconds), "loader_sd": stdev(contender.seconds),
            "data_wait": sum(contender.waits) / sum(contender.seconds),
        })  # fmt: skip
    erm = next((row for row in rows if row["method"] == ERM), None)
    for row in rows:
        for name in ("resident", "loader"):
            row[f"{name}_percent_over_erm"] = percent_over(row[f"{name}_s"], erm[f"{name}_s"]) if erm else None
        paper = PAPER.get(row["method"])
        row["paper_percent_over_erm"] = None if paper is None else percent_over(paper, PAPER_ERM)
    return Analysed(rows, _draw(rows), _said(rows))


def percent_over(seconds: float, baseline: float) -> float:
    """How much longer, in percent of the baseline."""
    return 100 * (seconds / baseline - 1)


def _resident(contender: Contender) -> float:
    """Mean seconds of a step on one batch, after as many to warm up."""
    batch = contender.batches.at(0)
    for count in (STEPS, STEPS):
        began = _now(contender)
        for _ in range(count):
            contender.learner.step(contender.learner.network, batch)
        seconds = _now(contender) - began
    return seconds / STEPS


def _now(contender: Contender) -> float:
    if contender.learner.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def _draw(rows: Sequence[dict[str, Any]]) -> Figure:
    order = sorted(rows, key=lambda row: row["resident_s"], reverse=True)
    figure = Figure(figsize=(8.6, 1.5 + 0.5 * len(order)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(order):
        for offset, name, colour in ((0.18, "resident", METHOD_COLOURS["dropgen"]), (-0.18, "loader", "#9cc9c6")):
            label = {"resident": "one batch that stays on the device", "loader": "batches from the loader"}[name]
            seconds, more = row[f"{name}_s"], row[f"{name}_percent_over_erm"]
            axis.barh(place + offset, seconds, 0.34, xerr=row[f"{name}_sd"], color=colour, label=label,
                      error_kw={"ecolor": MUTED, "lw": 1})  # fmt: skip
            told = f"{seconds:.3g} s" + ("" if more is None or row["method"] == ERM else f", {more:+.0f}%")
            axis.annotate(told.replace("-", "−"), (seconds + row[f"{name}_sd"], place + offset), (5, 0),
                          textcoords="offset points", va="center", fontsize=8, color=INK)  # fmt: skip
    style_axis(axis)
    axis.grid(axis="y", visible=False)
    ends = [row[f"{name}_s"] + row[f"{name}_sd"] for row in rows for name in ("resident", "loader")]
    axis.set_xlim(right=1.2 * max(ends))
    axis.set_yticks(range(len(order)), [row["model"] for row in order], fontsize=9, color=INK)
    axis.set_xlabel("seconds of a training step", fontsize=9, color=MUTED)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _said(rows: Sequence[dict[str, Any]]) -> list[str]:
    said = []
    for row in rows:
        ours, paper = row["resident_percent_over_erm"], row["paper_percent_over_erm"]
        if ours is not None and paper is not None:
            said.append(
                f"A step of {row['model']} on a batch that is there takes {row['resident_s']:.3g} ± "
                f"{row['resident_sd']:.1g} s, {ours:+.1f}% beside ERM's; in the paper {paper:+.1f}%.".replace("-", "−")
            )
    return said or ["Without ERM in the experiment there is nothing to relate the seconds to."]
