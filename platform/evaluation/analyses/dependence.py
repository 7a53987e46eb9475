"""Input dependence: what a network on image and features loses without the one or the other.

The channels are zeroed after the instance norm, nothing is rescaled, and the features stay those of the true image. On
the validation cases, so that the test cases are not looked at again. Figure 4 of the DropGen paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from dropgen.config import LEAVE_ONE_OUT
from dropgen.errors import NothingToAnalyseError
from dropgen.features.studies.study import Case
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluation.analyses.analysis import Analysed, Model, Scene
from dropgen.platform.evaluation.charts import INK, METHOD_COLOURS, MUTED, style_axis
from dropgen.platform.evaluation.metrics import labelled_dice, mean_dice
from dropgen.platform.methods.joint import Joint
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.bench import Workbench

SHOWN = {
    "full": "image and features",
    "without_image": "features alone, image zeroed",
    "without_features": "image alone, features zeroed",
}
COLOURS = {"full": METHOD_COLOURS["dropgen"], "without_image": "#d08a1d", "without_features": "#7b8794"}
# Trained on the image alone and on the features alone, and drawn like a network that is left with them.
REFERENCES = {"erm": "without_features", "rep_only": "without_image"}


class Without(nn.Module):
    """A network whose input channels `zeroed` are zero."""

    def __init__(self, network: nn.Module, zeroed: slice) -> None:
        super().__init__()
        self.network = network
        self.zeroed = zeroed

    def forward(self, u_bcxyz: Tensor) -> Tensor:
        """Logits `[B, K, X, Y, Z]` from u without those channels."""
        shown = u_bcxyz.clone()
        shown[:, self.zeroed] = 0
        logits: Tensor = self.network(shown)
        return logits


def analyse(scene: Scene) -> Analysed:
    """Validation Dice, whole and without image or features, of every model that is given both.

    Raises:
        NothingToAnalyseError: There is no such model, or no case to validate it on.
    """
    models = [model for model in scene.models if isinstance(model.method, Joint)]
    if not models:
        raise NothingToAnalyseError("no model is given the image and the features side by side")
    rule = scene.bench.experiment.selection.rule
    if rule == LEAVE_ONE_OUT:
        raise NothingToAnalyseError("the final networks were trained on every case that chose them")
    cases = validation_cases(scene.bench.study, rule)
    rows: list[dict[str, Any]] = [
        {"model": model.name, "input": "full", "val_dice": model.row["val_dice"], "drop": 0.0, "cases": len(cases)}
        for model in scene.models
        if model.row["method"] in REFERENCES
    ]
    references = len(rows)
    for model in scene.track(models, len(models)):
        segmenter = scene.load(model)
        bench = scene.bench.under(model.trial)
        zeroed = ways(bench.study.image_channels)
        found = {way: without(bench, segmenter, channels, cases) for way, channels in zeroed.items()}
        rows += [
            {"model": model.name, "input": way, "val_dice": value, "drop": found["full"] - value, "cases": len(cases)}
            for way, value in found.items()
        ]
    alone = {model.name: REFERENCES[model.row["method"]] for model in scene.models if model.row["method"] in REFERENCES}
    return Analysed(rows, _draw(rows, alone), _said(rows[references:], models))


def ways(images: int) -> dict[str, slice]:
    """The input channels that are zeroed each way, where the first so many are the image's."""
    return {"full": slice(0, 0), "without_image": slice(0, images), "without_features": slice(images, None)}


def without(bench: Workbench, segmenter: Segmenter, zeroed: slice, cases: Sequence[Case]) -> float:
    """Mean validation Dice, 0..1, with these channels of the network's input zero."""
    seen = segmenter.around(Without(segmenter.network, zeroed).eval())
    scores: list[tuple[Case, np.ndarray]] = []
    for case in cases:
        prepared, features, label = bench.stored(case, seen.method)
        mask = seen.predict_prepared(prepared, features)
        scores.append((case, labelled_dice(mask, label, bench.study.labelling)))
    return mean_dice(scores)


def _draw(rows: Sequence[dict[str, Any]], alone: Mapping[str, str]) -> Figure:
    names = list(dict.fromkeys(row["model"] for row in rows))
    values = {(row["model"], row["input"]): 100 * row["val_dice"] for row in rows}
    figure = Figure(figsize=(max(6.2, 1.6 + 1.15 * len(names)), 3.9), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(names):
        shown = [way for way in SHOWN if (name, way) in values]
        for index, way in enumerate(shown):
            at = place + 0.27 * (index - (len(shown) - 1) / 2)
            colour = COLOURS[alone.get(name, way)]
            axis.bar(at, values[name, way], 0.25, color=colour, label=SHOWN[way] if len(shown) > 1 else None)
            axis.annotate(f"{values[name, way]:.0f}", (at, values[name, way]), (0, 2), textcoords="offset points",
                          ha="center", fontsize=8, color=INK)  # fmt: skip
    style_axis(axis)
    axis.grid(axis="x", visible=False)
    axis.set_xticks(range(len(names)), [name.replace(" p = ", "\np = ") for name in names], fontsize=9, color=INK)
    axis.set_ylabel("validation Dice, percent", fontsize=9, color=MUTED)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _said(rows: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    drops = {(row["model"], row["input"]): 100 * row["drop"] for row in rows}
    told = [
        f"{model.name} loses {drops[model.name, 'without_image']:.1f} points without the image and "
        f"{drops[model.name, 'without_features']:.1f} without the features"
        for model in models
    ]
    return [f"{'; '.join(told)}."]
