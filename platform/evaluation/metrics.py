"""Dice, and how cases become subjects and subjects become a mean.

Cases of one subject are averaged first: two scans of one heart are one observation. A class that the
ground truth does not hold has no Dice; it is NaN and left out of every mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dropgen.features.studies.labelling import Labelling


class Scored(Protocol):
    """What a mean needs to know of a case."""

    @property
    def subject(self) -> str: ...
    @property
    def domain(self) -> str: ...


@dataclass(frozen=True)
class Spread:
    """Mean over subjects with its uncertainty, Dice in 0..1.

    Attributes:
        sd: Sample standard deviation; None for fewer than two subjects.
        se: Standard error of the mean, sd / sqrt(n).
        n: Number of subjects.
    """

    mean: float | None
    sd: float | None
    se: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of finite values; NaN entries are left out."""
        kept = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
        mean = float(kept.mean()) if kept.size else None
        sd = float(kept.std(ddof=1)) if kept.size > 1 else None
        return cls(mean, sd, None if sd is None else sd / math.sqrt(kept.size), int(kept.size))


def dice(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Dice of every foreground class, 2 |P and T| / (|P| + |T|).

    Args:
        prediction: Label map of any shape.
        truth: Label map of the same shape.
        classes: Number of classes with background.

    Returns:
        `[classes - 1]` float64 in 0..1; NaN where the truth holds no voxel of the class.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} are on different grids")
    labels = np.arange(1, classes)
    both = np.array([np.count_nonzero((prediction == label) & (truth == label)) for label in labels], dtype=np.float64)
    predicted = np.array([np.count_nonzero(prediction == label) for label in labels])
    true = np.array([np.count_nonzero(truth == label) for label in labels])
    return np.where(true > 0, 2 * both / np.maximum(predicted + true, 1), np.nan)


def labelled_dice(prediction: np.ndarray, truth: np.ndarray, labelling: Labelling) -> np.ndarray:
    """Dice of every class or region, voxels to ignore left out of both maps.

    Args:
        prediction: Label map of any shape.
        truth: Label map of the same shape.
        labelling: What their values mean.

    Returns:
        As `dice`.
    """
    if not labelling.regions:
        return dice(*labelling.counted(prediction, truth), len(labelling.classes))
    prediction, truth = labelling.counted(prediction, truth)
    found = [
        dice(labelling.inside(prediction, place), labelling.inside(truth, place), 2)
        for place in range(1, len(labelling.classes))
    ]
    return np.concatenate(found)


def subject_dice(scores: Sequence[tuple[Scored, np.ndarray]]) -> dict[tuple[str, str], np.ndarray]:
    """Per-class Dice of each (domain, subject), averaged over the subject's cases in that domain."""
    grouped: dict[tuple[str, str], list[np.ndarray]] = {}
    for case, values in scores:
        grouped.setdefault((case.domain, case.subject), []).append(values)
    return {key: _nanmean(np.stack(rows), axis=0) for key, rows in sorted(grouped.items())}


def mean_dice(scores: Sequence[tuple[Scored, np.ndarray]]) -> float:
    """The number that selects checkpoints and hyperparameters: mean over classes of the mean over subjects.

    Args:
        scores: Cases with their per-class Dice (`dice`).

    Returns:
        0..1; NaN when no case holds any foreground class.
    """
    return float(_nanmean(_nanmean(np.stack(list(subject_dice(scores).values())), axis=0), axis=0))


def domain_dice(scores: Sequence[tuple[Scored, np.ndarray]]) -> dict[str, Spread]:
    """Spread over subjects in each domain; a subject's score is the mean over the classes it shows."""
    domains: dict[str, list[float]] = {}
    for (domain, _), values in subject_dice(scores).items():
        domains.setdefault(domain, []).append(float(_nanmean(values, axis=0)))
    return {domain: Spread.of(values) for domain, values in domains.items()}


def class_dice(scores: Sequence[tuple[Scored, np.ndarray]], classes: Sequence[str]) -> dict[str, dict[str, Spread]]:
    """Spread over subjects of every foreground class in each domain."""
    domains: dict[str, list[np.ndarray]] = {}
    for (domain, _), values in subject_dice(scores).items():
        domains.setdefault(domain, []).append(values)
    return {
        domain: {name: Spread.of(column) for name, column in zip(classes[1:], np.stack(rows).T, strict=True)}
        for domain, rows in domains.items()
    }


def pooled_mean(spreads: Mapping[str, Spread]) -> float | None:
    """Mean over all subjects of several domains."""
    known = [(spread.mean, spread.n) for spread in spreads.values() if spread.mean is not None]
    return sum(mean * n for mean, n in known) / sum(n for _, n in known) if known else None


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class that nobody shows stays NaN: that is its meaning
        return np.asarray(np.nanmean(values, axis=axis))
