"""Losses by name: logits against class indices or, where a method mixed labels, class probabilities."""

from __future__ import annotations

from collections.abc import Callable

from monai.losses import DiceCELoss
from torch import Tensor

from dropgen.platform.methods import Criterion


def dice_ce() -> Criterion:
    """Soft Dice without background plus cross-entropy with it, weight 1 each (the paper's loss)."""
    hard = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    soft = DiceCELoss(include_background=False, softmax=True)

    def criterion(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
        loss: Tensor = (soft if label_bcxyz.is_floating_point() else hard)(logits_bkxyz, label_bcxyz)
        return loss

    return criterion


LOSSES: dict[str, Callable[[], Criterion]] = {"dice_ce": dice_ce}


def build_loss(name: str) -> Criterion:
    """Builds a loss of `LOSSES` by the name that `training.loss` gives it."""
    return LOSSES[name]()
