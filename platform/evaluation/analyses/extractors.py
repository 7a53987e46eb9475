"""Extractors and taps: how far their features stay when the same anatomy comes with other intensities.

Linear CKA between the features of an image and of its gamma- or bias-changed copy, after the instance norm, over the
voxels that are not background. The image itself stands beside them. Figure 6 of the DropGen paper, and its extractor
and tap comparisons as far as features go; Dice under another extractor takes an experiment of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors import EXTRACTORS, Extractor, build, extract, instance_norm
from dropgen.features.extractors.anatomix import ANATOMIX
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.analyses.cka import linear_cka
from dropgen.platform.evaluation.analyses.lines import Panel, level_lines
from dropgen.platform.evaluation.analyses.robustness import BIASES, GAMMAS, PANELS, biased, gamma

CASES = 3
EDGE = 64  # voxels per axis of the middle of a volume, at most
VOXELS = 100_000
SEED = 0
UNCHANGED = ("identity",)  # hands the image through


def analyse(scene: Scene) -> Analysed:
    """CKA of every extractor that can be built here, under every level of the robustness analysis."""
    found, missing = _extractors(scene)
    cases = validation_cases(scene.bench.study, scene.bench.experiment.selection.rule)[:CASES]
    rows: list[dict[str, Any]] = []
    for case in scene.track(cases, len(cases)):
        unit = np.array(scene.bench.stored(case)[0].unit[:, *_middle(scene, case.id)])
        inside = _voxels(unit)
        for name, extractor in found.items():
            clean = rows_of(extractor, unit, inside)
            for kind, level, changed in _changed(unit):
                cka = linear_cka(clean, rows_of(extractor, changed, inside))
                rows.append({
                    "extractor": name, "channels": extractor.channels, "case": case.id, "domain": case.domain,
                    "kind": kind, "level": level, "voxels": len(clean), "cka": cka,
                })  # fmt: skip
    panels = [Panel(title, axis, {name: _curve(rows, name, kind) for name in found}, "CKA with the clean image's")
              for kind, title, axis in PANELS]  # fmt: skip
    figure = level_lines(panels, {name: extractor.name for name, extractor in found.items()})
    return Analysed(rows, figure, [*_said(rows, list(found)), *missing])


def rows_of(extractor: Extractor, unit_mxyz: np.ndarray, inside_xyz: np.ndarray) -> Tensor:
    """Instance-normalised features of some voxels, `[n, C]`."""
    raw = torch.from_numpy(extract(extractor, unit_mxyz)[0])
    return instance_norm(raw[None])[0][:, torch.from_numpy(inside_xyz)].T


def _extractors(scene: Scene) -> tuple[dict[str, Extractor], list[str]]:
    """By label: the experiment's own, every other at its defaults and anatomix at its other tap; and who is missing."""
    own = scene.bench.experiment.features.extractor
    others = [Component.of(name) for name in EXTRACTORS if name != own.name]
    taps = [Component.of(ANATOMIX.name, tap=tap) for tap in (ANATOMIX.penultimate, ANATOMIX.final)]
    wanted = [one for one in (own, *others) if one.name != ANATOMIX.name] + taps
    if own.name == ANATOMIX.name and own not in taps:
        wanted.insert(0, own)
    found: dict[str, Extractor] = {}
    missing: list[str] = []
    for component in wanted:
        try:
            name = "image alone" if component.name in UNCHANGED else component.label
            found[name] = build(component, image_channels=scene.bench.study.image_channels)
        except (ConfigError, WeightsError):
            missing.append(component.label)
    return found, [f"Not compared, because they cannot be built here: {', '.join(missing)}."] if missing else []


def _middle(scene: Scene, case: str) -> tuple[slice, ...]:
    shape = scene.bench.store.volume(scene.bench.index.keys[case].volume).shape
    return tuple(slice((size - min(size, EDGE)) // 2, (size + min(size, EDGE)) // 2) for size in shape)


def _voxels(unit_mxyz: np.ndarray) -> np.ndarray:
    """Voxels that are not background, at most `VOXELS` of them, drawn by a seed of their own; bool `[X, Y, Z]`."""
    places = np.flatnonzero((unit_mxyz > 0).any(axis=0))
    if len(places) > VOXELS:
        places = np.random.default_rng(SEED).choice(places, VOXELS, replace=False)
    inside = np.zeros(unit_mxyz.shape[1:], bool)
    inside.flat[places] = True
    return inside


def _changed(unit_mxyz: np.ndarray) -> Iterator[tuple[str, float, np.ndarray]]:
    for level in GAMMAS:
        yield "gamma", level, gamma(unit_mxyz, level)
    for level in BIASES:
        field = biased(unit_mxyz, level, SEED)
        yield "bias", level, field / max(float(field.max()), 1.0)


def _curve(rows: Sequence[dict[str, Any]], name: str, kind: str) -> tuple[list[float], list[float]]:
    own = [row for row in rows if row["extractor"] == name and row["kind"] == kind]
    levels = sorted({row["level"] for row in own})
    return levels, [fmean(row["cka"] for row in own if row["level"] == level) for level in levels]


def _said(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    said = []
    for kind, worst in (("gamma", GAMMAS[-1]), ("bias", BIASES[-1])):
        ends = {name: _curve(rows, name, kind)[1][-1] for name in names}
        order = sorted(names, key=lambda name: -ends[name])
        where = f"{'s' if kind == 'gamma' else 'a'} = {worst:g}"
        said.append(f"{kind.capitalize()} at {where}: " + ", ".join(f"{name} {ends[name]:.2f}" for name in order) + ".")
    return said
