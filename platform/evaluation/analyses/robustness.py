"""Robustness to gamma and bias: what an image's intensities may become before a method fails.

Images in unit scale become x^g, g = exp(s), or x exp(field), a sum of 3D Legendre products up to total degree 3 whose
coefficients are U(0, a); both are then put back on the range of the clean image. The DropGen paper's robustness figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import RandBiasField

from dropgen.features.studies.prepare import Prepared
from dropgen.platform.evaluation.analyses.analysis import Analysed, Model, Scene
from dropgen.platform.evaluation.analyses.lines import Panel, level_lines

GAMMAS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)  # s
BIASES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # a
SEEDS = (0, 1, 2)  # of the fields at one level
DEGREE = 3
PANELS = (("gamma", "Gamma: x to the power of exp(s)", "s"), ("bias", "Bias field", "largest coefficient a"))


def analyse(scene: Scene) -> Analysed:
    """Dice of every method's chosen model on the held-out cases under each level; the table's Dice at level 0."""
    cases, models = scene.test_cases, scene.chosen_models
    settings = _settings()
    scores: dict[tuple[str, str, float, int], list[Any]] = {}
    for model in scene.track(models, len(models)):
        scene.touch(model, cases)
        segmenter = scene.load(model)
        for case, prepared, truth in scene.read(cases, segmenter):
            for kind, level, seed, change in settings:
                found = scene.score(segmenter, corrupted(prepared, change), truth)
                scores.setdefault((model.name, kind, level, seed), []).append((case, found))
    rows = [
        {
            "model": name, "kind": kind, "level": level, "seed": seed,
            "unseen_dice": scene.unseen(found), "source_dice": scene.source(found), "cases": len(found),
        }
        for (name, kind, level, seed), found in scores.items()
    ]  # fmt: skip
    panels = [
        Panel(title, axis, {model.name: _curve(rows, model.name, kind, "unseen_dice") for model in models})
        for kind, title, axis in PANELS
    ]
    methods = {model.name: model.row["method"] for model in models}
    return Analysed(rows, level_lines(panels, methods), _said(rows, models))


def gamma(unit_mxyz: np.ndarray, level: float) -> np.ndarray:
    """x^exp(level); 0 and 1 stay."""
    return np.asarray(unit_mxyz ** np.float32(np.exp(level)))


def biased(unit_mxyz: np.ndarray, level: float, seed: int) -> np.ndarray:
    """x exp(field), the coefficients of the field drawn from U(0, level); one field for all channels."""
    field = RandBiasField(prob=1.0, degree=DEGREE, coeff_range=(0.0, level))
    field.set_random_state(seed=seed)
    changed: np.ndarray = np.asarray(field(torch.from_numpy(np.array(unit_mxyz))))
    return changed


def corrupted(prepared: Prepared, change: Callable[[np.ndarray], np.ndarray]) -> Prepared:
    """A prepared image of other intensities, every channel on the range of its clean ones.

    The network's own channels follow as their intensity rules would: shift and scale move with mean and SD where they
    are a z-score's.
    """
    clean, shift, scale = np.asarray(prepared.unit), list(prepared.shift), list(prepared.scale)
    unit = np.array(change(clean))
    for channel, (old, new) in enumerate(zip(clean, unit, strict=True)):
        new[:] = _ranged(new, float(old.min()), float(old.max()))
        if (shift[channel], scale[channel]) != (0.0, 1.0):
            shift[channel] += float(new.mean(dtype=np.float64) - old.mean(dtype=np.float64))
            scale[channel] *= float(new.std(dtype=np.float64) / old.std(dtype=np.float64))
    return replace(prepared, unit=unit, shift=tuple(shift), scale=tuple(scale))


def _ranged(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    found_low, found_high = float(unit.min()), float(unit.max())
    if (found_low, found_high) == (low, high) or found_high == found_low:
        return unit
    return np.asarray(low + (unit - found_low) / (found_high - found_low) * (high - low), dtype=np.float32)


def _settings() -> list[tuple[str, float, int, Callable[[np.ndarray], np.ndarray]]]:
    """Kind, level, seed and the change; level 0 of either kind is the clean image, and needs one seed."""
    found: list[tuple[str, float, int, Callable[[np.ndarray], np.ndarray]]] = []
    for level in GAMMAS:
        found.append(("gamma", level, 0, partial(gamma, level=level)))
    for level in BIASES:
        for seed in SEEDS if level else SEEDS[:1]:
            found.append(("bias", level, seed, partial(biased, level=level, seed=seed)))
    return found


def _curve(rows: Sequence[dict[str, Any]], model: str, kind: str, column: str) -> tuple[list[float], list[float]]:
    own = [row for row in rows if row["model"] == model and row["kind"] == kind]
    levels = sorted({row["level"] for row in own})
    return levels, [100 * float(np.mean([row[column] for row in own if row["level"] == level])) for level in levels]


def _said(rows: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[str]:
    said = []
    for kind, worst in (("gamma", GAMMAS[-1]), ("gamma", GAMMAS[0]), ("bias", BIASES[-1])):
        left: dict[str, float] = {}
        gained: dict[str, float] = {}
        for model in models:
            levels, values = _curve(rows, model.name, kind, "unseen_dice")
            left[model.name] = values[levels.index(worst)]
            gained[model.name] = left[model.name] - values[levels.index(0.0)]
        ahead, most = max(left, key=left.__getitem__), min(gained, key=gained.__getitem__)
        said.append(
            f"{kind.capitalize()} at {'s' if kind == 'gamma' else 'a'} = {worst:g}: {ahead} is ahead on unseen domains "
            f"with {left[ahead]:.1f} ({gained[ahead]:+.1f} points from its clean images), {most} loses most "
            f"({gained[most]:+.1f}, to {left[most]:.1f}).".replace("-", "−")
        )
    return said
