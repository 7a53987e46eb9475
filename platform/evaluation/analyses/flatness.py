"""Weight-noise flatness: how much Dice a network loses when its weights are shaken.

theta' = theta + sigma N(0, 1) on every parameter of the network; buffers and the frozen extractor stay. The network
that is analysed is a copy: no weight of the bundle is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from dropgen.platform.evaluation.analyses.analysis import Analysed, Model, Scene
from dropgen.platform.evaluation.analyses.lines import Panel, level_lines

SIGMAS = (0.0, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
SEEDS = (0, 1, 2, 3, 4)


def analyse(scene: Scene) -> Analysed:
    """Dice of every method's chosen model on the held-out cases under each noise; the table's Dice at sigma 0."""
    cases, models = scene.test_cases, scene.chosen_models
    settings = [(sigma, seed) for sigma in SIGMAS for seed in (SEEDS if sigma else SEEDS[:1])]
    rows = []
    for model in scene.track(models, len(models)):
        scene.touch(model, cases)
        segmenter = scene.load(model)
        weights = [parameter.detach().clone() for parameter in segmenter.network.parameters()]
        scores: dict[tuple[float, int], list[Any]] = {setting: [] for setting in settings}
        for case, prepared, truth in scene.read(cases, segmenter):
            features = segmenter.features(prepared)
            for sigma, seed in settings:
                shake(segmenter.network, weights, sigma, seed)
                scores[sigma, seed].append((case, scene.score(segmenter, prepared, truth, features)))
        rows += [
            {
                "model": model.name, "sigma": sigma, "seed": seed,
                "unseen_dice": scene.unseen(found), "source_dice": scene.source(found), "cases": len(found),
            }
            for (sigma, seed), found in scores.items()
        ]  # fmt: skip
    panel = Panel(
        "Dice on unseen domains under noise on all weights",
        "sigma, standard deviation of the noise",
        {model.name: (SIGMAS, [100 * _mean(rows, model, sigma) for sigma in SIGMAS]) for model in models},
    )
    lost = Panel(
        "What is lost of it",
        panel.axis,
        {name: (levels, [values[0] - value for value in values]) for name, (levels, values) in panel.curves.items()},
    )
    methods = {model.name: model.row["method"] for model in models}
    figure = level_lines([panel, lost], methods, share=False)
    return Analysed(rows, figure, [_said(rows, models)])


def shake(network: nn.Module, weights: Sequence[Tensor], sigma: float, seed: int) -> None:
    """Sets a network's parameters to these weights plus noise; sigma 0 gives the weights bit for bit.

    The noise is drawn on the CPU, so that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            parameter.copy_(weight + sigma * noise if sigma else weight)


def _mean(rows: Sequence[dict[str, Any]], model: Model, sigma: float) -> float:
    return fmean(row["unseen_dice"] for row in rows if row["model"] == model.name and row["sigma"] == sigma)


def _said(rows: Sequence[dict[str, Any]], models: Sequence[Model]) -> str:
    sigma = SIGMAS[-2]
    told = []
    for model in models:
        values = [row["unseen_dice"] for row in rows if row["model"] == model.name and row["sigma"] == sigma]
        drop = 100 * (_mean(rows, model, 0.0) - fmean(values))
        told.append(f"{model.name} {drop:.1f} ± {100 * stdev(values):.1f}")
    return (
        f"Points of Dice lost at sigma = {sigma:g}, mean ± SD over {len(SEEDS)} draws of the noise: {', '.join(told)}. "
        "A flat optimum loses little; networks of other sizes of weights are not compared fairly by one sigma."
    )
