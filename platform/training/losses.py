"""Losses by name: logits against label values or, where a method mixed labels, class probabilities.

Every loss is a mean over regions or foreground classes of an overlap plus a mean over voxels of a pointwise part. Where
classes are label values the probabilities are a softmax with background; where they are regions, which overlap, each
has a sigmoid of its own and there is no background. Voxels to ignore count in neither sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor

from dropgen.features.studies.labelling import Labelling
from dropgen.platform.methods import Criterion

FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7  # Salehi et al., MLMI 2017: a missed voxel costs more than a spare one
GAMMA = 2.0  # Lin et al., ICCV 2017
PLAIN = Labelling(())  # of any number of classes that are label values, without voxels to ignore

# Logits `[B, C, ...]` and truth `[B, C, ...]`, 0 or 1, to the loss of every voxel and channel.
Pointwise = Callable[[Tensor, Tensor], Tensor]


def dice_ce(labelling: Labelling = PLAIN) -> Criterion:
    """Soft Dice without background plus cross-entropy with it, weight 1 each (the paper's loss)."""
    if not labelling.plain:
        overlap = DiceLoss(include_background=bool(labelling.regions))
        return _of_known_voxels(labelling, overlap, _binary_entropy if labelling.regions else _entropy)
    hard = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    soft = DiceCELoss(include_background=False, softmax=True)

    def criterion(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
        loss: Tensor = (soft if label_bcxyz.is_floating_point() else hard)(logits_bkxyz, label_bcxyz)
        return loss

    return criterion


def tversky_focal(labelling: Labelling = PLAIN) -> Criterion:
    """Tversky loss without background plus focal loss with it, weight 1 each: for small structures.

    With class probabilities p, truth g and sums over a sample's voxels, Tversky is the mean over samples and classes
    of 1 - sum(p g) / (sum(p g) + 0.3 sum(p (1 - g)) + 0.7 sum((1 - p) g)); 0.5 and 0.5 would be Dice. Focal is the
    mean over voxels of -sum_k g (1 - p)^2 log p; without the square it would be cross-entropy.
    """

    def tversky(onehot: bool, softmax: bool = True, background: bool = False) -> TverskyLoss:
        return TverskyLoss(
            include_background=background, to_onehot_y=onehot, softmax=softmax, alpha=FALSE_POSITIVES,
            beta=FALSE_NEGATIVES,
        )  # fmt: skip

    if not labelling.plain:
        focal_of_each = FocalLoss(use_softmax=not labelling.regions, gamma=GAMMA, reduction="none")
        overlap = tversky(onehot=False, softmax=False, background=bool(labelling.regions))
        return _of_known_voxels(labelling, overlap, focal_of_each)
    hard = tversky(onehot=True), FocalLoss(to_onehot_y=True, use_softmax=True, gamma=GAMMA)
    soft = tversky(onehot=False), FocalLoss(use_softmax=True, gamma=GAMMA)

    def criterion(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
        region, focal = soft if label_bcxyz.is_floating_point() else hard
        classes = logits_bkxyz.shape[1]  # MONAI's mean runs over classes too, of which one counts per voxel
        loss: Tensor = region(logits_bkxyz, label_bcxyz) + classes * focal(logits_bkxyz, label_bcxyz)
        return loss

    return criterion


LOSSES: dict[str, Callable[[Labelling], Criterion]] = {"dice_ce": dice_ce, "tversky_focal": tversky_focal}


def build_loss(name: str, labelling: Labelling = PLAIN) -> Criterion:
    """Builds a loss of `LOSSES` by the name that `training.loss` gives it."""
    return LOSSES[name](labelling)


def truth_of(label_b1xyz: Tensor, labelling: Labelling) -> tuple[Tensor, Tensor]:
    """What logits are compared with.

    Args:
        label_b1xyz: Label values, int64.
        labelling: What they mean.

    Returns:
        Truth `[B, outputs, X, Y, Z]` and which voxels count `[B, 1, X, Y, Z]`, both float32 of 0 and 1; nothing is
        true of a voxel that does not count.
    """
    values = labelling.regions or [(value,) for value in range(len(labelling.classes))]
    truth = [torch.isin(label_b1xyz, label_b1xyz.new_tensor(each)) for each in values]
    known = torch.ones_like(label_b1xyz) if labelling.ignore is None else label_b1xyz != labelling.ignore
    return torch.cat(truth, dim=1).float(), known.float()


def _of_known_voxels(labelling: Labelling, overlap: Pointwise, pointwise: Pointwise) -> Criterion:
    """The overlap of probabilities and truth where both are known, plus the mean of what each known voxel costs.

    A mean over voxels and, with regions, over these; a batch without a known voxel costs nothing.
    """

    def criterion(logits_bkxyz: Tensor, label_b1xyz: Tensor) -> Tensor:
        logits_bkxyz = logits_bkxyz.float()
        truth_bkxyz, known_b1xyz = truth_of(label_b1xyz, labelling)
        p_bkxyz = logits_bkxyz.sigmoid() if labelling.regions else logits_bkxyz.softmax(dim=1)
        each = len(labelling.regions) or 1
        counted = (known_b1xyz.sum() * each).clamp(min=1)
        cost = (pointwise(logits_bkxyz, truth_bkxyz) * known_b1xyz).sum() / counted
        return overlap(p_bkxyz * known_b1xyz, truth_bkxyz) + cost

    return criterion


def _entropy(logits_bkxyz: Tensor, truth_bkxyz: Tensor) -> Tensor:
    return -truth_bkxyz * logits_bkxyz.log_softmax(dim=1)


def _binary_entropy(logits_bkxyz: Tensor, truth_bkxyz: Tensor) -> Tensor:
    return nnf.binary_cross_entropy_with_logits(logits_bkxyz, truth_bkxyz, reduction="none")
