"""Losses by name: logits against class indices or, where a method mixed labels, class probabilities."""

from __future__ import annotations

from collections.abc import Callable

from monai.losses import DiceCELoss, FocalLoss, TverskyLoss
from torch import Tensor

from dropgen.platform.methods import Criterion

FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7  # Salehi et al., MLMI 2017: a missed voxel costs more than a spare one
GAMMA = 2.0  # Lin et al., ICCV 2017


def dice_ce() -> Criterion:
    """Soft Dice without background plus cross-entropy with it, weight 1 each (the paper's loss)."""
    hard = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    soft = DiceCELoss(include_background=False, softmax=True)

    def criterion(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
        loss: Tensor = (soft if label_bcxyz.is_floating_point() else hard)(logits_bkxyz, label_bcxyz)
        return loss

    return criterion


def tversky_focal() -> Criterion:
    """Tversky loss without background plus focal loss with it, weight 1 each: for small structures.

    With class probabilities p, truth g and sums over a sample's voxels, Tversky is the mean over samples and classes
    of 1 - sum(p g) / (sum(p g) + 0.3 sum(p (1 - g)) + 0.7 sum((1 - p) g)); 0.5 and 0.5 would be Dice. Focal is the
    mean over voxels of -sum_k g (1 - p)^2 log p; without the square it would be cross-entropy.
    """

    def tversky(onehot: bool) -> TverskyLoss:
        return TverskyLoss(
            include_background=False, to_onehot_y=onehot, softmax=True, alpha=FALSE_POSITIVES, beta=FALSE_NEGATIVES
        )

    hard = tversky(onehot=True), FocalLoss(to_onehot_y=True, use_softmax=True, gamma=GAMMA)
    soft = tversky(onehot=False), FocalLoss(use_softmax=True, gamma=GAMMA)

    def criterion(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
        region, focal = soft if label_bcxyz.is_floating_point() else hard
        classes = logits_bkxyz.shape[1]  # MONAI's mean runs over classes too, of which one counts per voxel
        loss: Tensor = region(logits_bkxyz, label_bcxyz) + classes * focal(logits_bkxyz, label_bcxyz)
        return loss

    return criterion


LOSSES: dict[str, Callable[[], Criterion]] = {"dice_ce": dice_ce, "tversky_focal": tversky_focal}


def build_loss(name: str) -> Criterion:
    """Builds a loss of `LOSSES` by the name that `training.loss` gives it."""
    return LOSSES[name]()
