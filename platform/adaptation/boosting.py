"""The maths of stable feature boosting: which mistakes pseudo-labels make, and two predictions made one.

Classes come first in every array; what follows are voxels in any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
MAX_CONDITION = 1e4
SLAB = 2**18  # voxels that are held in float64 at a time: 33 MB for 16 classes


def soft_confusion(pseudo_k: Tensor) -> tuple[Tensor, Tensor]:
    """How pseudo-labels are confused, themselves taken as the soft truth.

    E[j, k] = sum_v Q_j(v) Q_k(v) / sum_v Q_k(v) estimates P(pseudo-label j | true class k). Columns sum to 1, and
    E pi = pi with pi_k = mean_v Q_k(v).

    Args:
        pseudo_k: Q, probabilities `[K, ...]`.

    Returns:
        E `[K, K]` and the voxels that every class holds, sum_v Q_k `[K]`; float64. The column of a class without
        any is 0.
    """
    products = torch.zeros(len(pseudo_k), len(pseudo_k), dtype=torch.float64)
    mass = torch.zeros(len(pseudo_k), dtype=torch.float64)
    for slab_kv in pseudo_k.flatten(1).split(SLAB, dim=1):
        slab_kv = slab_kv.double()
        products += slab_kv @ slab_kv.T
        mass += slab_kv.sum(dim=1)
    return products / mass.clamp_min(torch.finfo(torch.float64).tiny), mass


def unmixing(confusion: Tensor, mass: Tensor) -> Tensor:
    """The matrix that undoes a confusion: E^-1, as far as E can be trusted.

    Where every class holds something and the condition number is at most 10^4 that is E^-1. Else it is the
    pseudo-inverse over the classes that hold more than one voxel, without the singular values below 1 / 10^4 of the
    largest, and the other classes keep their probability. Where fewer than two directions are left the pseudo-labels
    tell no class from another and nothing is changed; with two classes that is e0 + e1 - 1 <= 0, e_k = E[k, k].

    Args:
        confusion: E `[K, K]`.
        mass: Voxels of every class `[K]`.
    """
    if mass.min() > 0 and torch.linalg.cond(confusion) <= MAX_CONDITION:
        whole: Tensor = torch.linalg.inv(confusion)
        return whole
    inverse = torch.eye(len(confusion), dtype=confusion.dtype)
    held = torch.nonzero(mass > 1).flatten()
    part = confusion[held][:, held]
    if torch.linalg.matrix_rank(part, rtol=1 / MAX_CONDITION) < 2:
        return inverse
    inverse[held[:, None], held] = torch.linalg.pinv(part, rtol=1 / MAX_CONDITION)
    return inverse


def correct(unstable_k: Tensor, inverse: Tensor) -> Tensor:
    """Undoes the confusion in a prediction that was learned from pseudo-labels: q = E^-1 p, back on the simplex.

    Values are clipped to [eps, 1] and divided by their sum.

    Args:
        unstable_k: p, probabilities `[K, ...]`.
        inverse: From `unmixing`, `[K, K]`.
    """
    corrected_k: Tensor = torch.tensordot(inverse.to(unstable_k.dtype), unstable_k, dims=1).clamp(EPS, 1)
    return corrected_k / corrected_k.sum(dim=0)


def combine(stable_k: Tensor, corrected_k: Tensor, prior_k: Tensor) -> Tensor:
    """Two predictions that are independent given the class: log q = log p_stable + log q_unstable - log pi + const.

    Probabilities are clamped at eps before the logarithm. Dividing by the prior favours rare classes, as published.

    Args:
        stable_k: `[K, ...]`.
        corrected_k: `[K, ...]`.
        prior_k: pi `[K]`.

    Returns:
        Probabilities `[K, ...]`.
    """
    log_prior_k = prior_k.to(stable_k.dtype).clamp_min(EPS).log().view(-1, *[1] * (stable_k.ndim - 1))
    log_combined_k = stable_k.clamp_min(EPS).log() + corrected_k.clamp_min(EPS).log() - log_prior_k
    return log_combined_k.softmax(dim=0)


def boost(stable_kxyz: Tensor, unstable_kxyz: Tensor, pseudo_kxyz: Tensor) -> Tensor:
    """One round's new pseudo-labels, from the stable prediction and from the one learned from the last ones.

    Args:
        stable_kxyz: float16, so that 16 classes of a large volume fit; so is the result.
        unstable_kxyz: float32.
        pseudo_kxyz: The last pseudo-labels, float16.
    """
    confusion, mass = soft_confusion(pseudo_kxyz)
    inverse, prior_k = unmixing(confusion, mass), mass / mass.sum()
    boosted_kxyz = torch.empty_like(stable_kxyz)
    for x in range(stable_kxyz.shape[1]):
        boosted_kxyz[:, x] = combine(stable_kxyz[:, x].float(), correct(unstable_kxyz[:, x], inverse), prior_k)
    return boosted_kxyz
