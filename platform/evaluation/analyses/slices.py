"""One slice and what every method makes of it, side by side, best first.

From masks that the evaluations left: nothing is predicted for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dropgen.errors import NothingToAnalyseError
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.overlays import INK, MUTED, RULE, Picture, colour, contrast, draw_mask, slices_of
from dropgen.platform.evaluation.results import Group, ScoredCase, chosen_of_each, points, scored_cases

COLUMNS = 6
INCHES = 2.0
TRUTH = "ground truth"


def analyse(scene: Scene) -> Analysed:
    """The median test case of unseen domains by the mean Dice of all methods: easy for none, hopeless for none.

    Raises:
        NothingToAnalyseError: No test case of an unseen domain has a label.
    """
    groups = chosen_of_each(scene.groups)
    scored = {group.name: _by_case(group) for group in groups}
    known = set.intersection(*(set(found) for found in scored.values()))
    cases = {case.id: case for case in scene.bench.study.cases if case.id in known}
    means = {
        name: float(np.mean([found[name].mean for found in scored.values()]))
        for name, case in cases.items()
        if case.domain not in scene.bench.study.train_domains
    }
    ranked = sorted((name for name in means if math.isfinite(means[name])), key=lambda name: (-means[name], name))
    if not ranked:
        raise NothingToAnalyseError("no test case of an unseen domain has a label")
    case = cases[ranked[len(ranked) // 2]]
    assert case.label is not None
    order = sorted(groups, key=lambda group: -scored[group.name][case.id].mean)
    masks: dict[str, np.ndarray | None] = {TRUTH: read_mask(case.label).array}
    for group in order:
        masks[group.name] = read_mask(Path(group.lead["evaluation"]) / "masks" / f"{case.id}.nii.gz").array
    notes = {group.name: f"Dice {points(scored[group.name][case.id].mean)}" for group in order}
    figure = _draw(
        Picture(f"{case.id}, {case.domain}", read_volume(case.image), masks, notes), scene.bench.study.classes
    )
    rows = [
        {"model": group.name, "seed": group.lead["seed"], "case": case.id, "domain": case.domain, "class": name,
         "dice": value}
        for group in order
        for name, value in (*scored[group.name][case.id].dice.items(), ("mean", scored[group.name][case.id].mean))
    ]  # fmt: skip
    said = (
        f"Case {case.id} of {case.domain}, the median of {len(ranked)} test cases of unseen domains by the mean Dice "
        f"of all methods; of every method its best seed on validation. The slice is the one with most ground truth, "
        "Dice is that of the whole volume."
    )
    return Analysed(rows, figure, [said])


def _by_case(group: Group) -> Mapping[str, ScoredCase]:
    return {case.case: case for case in scored_cases(Path(group.lead["evaluation"])) if case.split == "test"}


def _draw(picture: Picture, classes: Sequence[str]) -> Figure:
    image, masks, aspect = slices_of(picture)
    panels = ["image", *picture.masks]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(INCHES * columns + 0.2, (INCHES + 0.42) * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    low, high = contrast(image)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, panels, strict=False):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
        if name in masks:
            draw_mask(axis, masks[name], aspect)
        axis.set_title(name, fontsize=9.5, color=INK, pad=5)
        axis.set_xlabel(picture.notes.get(name, picture.title if name == "image" else ""), fontsize=8.5, color=MUTED)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=RULE, linewidth=0.8)
    patches = [Patch(color=colour(label), label=name) for label, name in enumerate(classes) if label > 0]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False, fontsize=8.5,
        labelcolor=INK,
    )  # fmt: skip
    return figure
