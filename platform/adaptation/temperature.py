"""Temperature scaling: one number that makes a model's probabilities honest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from scipy.optimize import minimize_scalar
from torch import Tensor

RANGE = (0.01, 100.0)
UNKNOWN = -100  # of what value a voxel without a known class is


def nll(logits: Sequence[Tensor], labels: Sequence[Tensor], temperature: float) -> float:
    """Mean negative log-likelihood of the true classes under softmax(z / T), over the voxels of all volumes.

    Args:
        logits: `[K, X, Y, Z]` per volume.
        labels: Integer `[X, Y, Z]` per volume; voxels with a value beyond the classes are those to ignore.
        temperature: T.
    """
    total, count = 0.0, 0
    for z_kxyz, y_xyz in zip(logits, labels, strict=True):
        known = y_xyz < len(z_kxyz)
        truth = y_xyz.long().where(known, UNKNOWN)[None]
        costs = nnf.cross_entropy(z_kxyz.float()[None] / temperature, truth, reduction="none", ignore_index=UNKNOWN)
        total, count = total + float(costs.double().sum()), count + int(known.sum())
    return total / max(count, 1)


def fit_temperature(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """The T in [0.01, 100] that minimises `nll`; it has one minimum, being convex in 1 / T.

    The search runs over log T, so that logits multiplied by c give c * T. Source: Guo et al., On Calibration of
    Modern Neural Networks, ICML 2017.
    """
    low, high = (math.log(edge) for edge in RANGE)
    with torch.no_grad():
        found = minimize_scalar(
            lambda log_t: nll(logits, labels, math.exp(log_t)),
            bounds=(low, high), method="bounded", options={"xatol": 1e-4},
        )  # fmt: skip
    return math.exp(float(found.x))
