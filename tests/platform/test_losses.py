"""DiceCE, and Tversky with focal loss, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dropgen.config import Training
from dropgen.platform.training.losses import LOSSES, build_loss, dice_ce, tversky_focal

CLASSES, VOXELS = 3, 64


def label_and_truth() -> tuple[Tensor, Tensor]:
    """Class indices `[2, 1, 4, 4, 4]` and the same as probabilities."""
    label = torch.randint(CLASSES, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return label, torch.nn.functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1).float()


def two_voxels_cubed(classes: int) -> tuple[Tensor, Tensor]:
    """Logits `[2, K, 2, 2, 2]` and a label that holds every class but, in the second sample, the last."""
    logits = torch.randn(2, classes, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    return logits, torch.stack([torch.arange(8) % held for held in (classes, classes - 1)]).view(2, 1, 2, 2, 2)


def dice_half(logits: Tensor, label: Tensor) -> Tensor:
    """What DiceCE has beside the cross-entropy."""
    return dice_ce()(logits, label) - torch.nn.functional.cross_entropy(logits, label[:, 0])


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_dice_ce_of_eight_voxels_is_the_written_sum(classes: int) -> None:
    logits, label = two_voxels_cubed(classes)
    p, dice, entropy = logits.double().softmax(dim=1), [], []
    for b in range(2):
        for k in range(1, classes):
            g = (label[b, 0] == k).double()
            dice.append(1 - (2 * (p[b, k] * g).sum() + 1e-5) / (p[b, k].sum() + g.sum() + 1e-5))
        entropy += [-p[b, label[b, 0, x, y, z], x, y, z].log() for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    expected = sum(dice) / len(dice) + sum(entropy) / len(entropy)
    assert dice_ce()(logits, label).item() == pytest.approx(float(expected), abs=1e-5)


def test_with_two_classes_the_background_feels_the_dice_half_through_the_softmax_alone() -> None:
    logits, label = two_voxels_cubed(2)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(dice_half(logits, label), logits)
    p, g = logits.detach().softmax(dim=1), (label == 1).float()
    shared = 2 * (p[:, 1:] * g).sum(dim=(2, 3, 4), keepdim=True) + 1e-5
    whole = (p[:, 1:] + g).sum(dim=(2, 3, 4), keepdim=True) + 1e-5
    of_foreground = -(2 * g * whole - shared) / whole**2 / len(logits)  # of the Dice term with respect to p_1
    through_softmax = p[:, :1] * p[:, 1:]
    assert torch.allclose(gradient[:, 1:], of_foreground * through_softmax, atol=1e-6)
    assert torch.allclose(gradient[:, :1], -of_foreground * through_softmax, atol=1e-6)


def test_a_class_that_a_crop_lacks_costs_one_until_it_is_no_longer_predicted() -> None:
    label, classes = torch.zeros(1, 1, 2, 2, 2).long(), 2
    uniform, sure = torch.zeros(1, classes, 2, 2, 2), torch.zeros(1, classes, 2, 2, 2)
    sure[:, 0] = 50
    assert dice_half(uniform, label).item() == pytest.approx(1, abs=1e-4)
    assert dice_half(sure, label).item() == pytest.approx(0, abs=1e-4)


def test_a_perfect_prediction_costs_nothing() -> None:
    label, truth = label_and_truth()
    assert tversky_focal()(50 * truth, label) < 1e-3


def test_uniform_logits_give_the_closed_form() -> None:
    label, truth = label_and_truth()
    size = truth[:, 1:].sum(dim=(2, 3, 4))
    tp, fp, fn = size / CLASSES, (VOXELS - size) / CLASSES, size * (1 - 1 / CLASSES)
    tversky = 1 - (tp + 1e-5) / (tp + 0.3 * fp + 0.7 * fn + 1e-5)
    focal = (1 - 1 / CLASSES) ** 2 * math.log(CLASSES)
    expected = tversky.mean() + focal
    assert torch.allclose(tversky_focal()(torch.zeros(2, CLASSES, 4, 4, 4), label), expected, atol=1e-6)


def test_one_voxel_by_hand() -> None:
    p = 0.8  # of the true class, 1
    logits = torch.tensor([math.log(1 - p), math.log(p)]).view(1, 2, 1, 1, 1)
    expected = 1 - p / (p + 0.7 * (1 - p)) - (1 - p) ** 2 * math.log(p)
    assert tversky_focal()(logits, torch.ones(1, 1, 1, 1, 1).long()).item() == pytest.approx(expected, abs=1e-5)


def test_a_missed_voxel_costs_more_than_a_spare_one() -> None:
    label = torch.zeros(1, 1, 1, 1, 4).long()
    label[..., :2] = 1

    def predicted(foreground: int) -> Tensor:
        chosen = (torch.arange(4) < foreground).float()
        return 20 * torch.stack((1 - chosen, chosen)).view(1, 2, 1, 1, 4)

    assert tversky_focal()(predicted(1), label) > tversky_focal()(predicted(3), label)


@pytest.mark.parametrize("name", LOSSES)
def test_class_indices_are_probabilities_of_zero_and_one(name: str) -> None:
    label, truth = label_and_truth()
    logits = torch.randn(2, CLASSES, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(build_loss(name)(logits, label), build_loss(name)(logits, truth), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_labels_give_a_finite_loss_with_a_gradient(name: str) -> None:
    _, truth = label_and_truth()
    logits = torch.randn(2, CLASSES, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = build_loss(name)(logits, 0.3 * truth + 0.7 * truth.flip(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert logits.grad.any()


def test_a_crop_without_foreground_gives_the_closed_form() -> None:
    logits = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    background = torch.zeros(1, 1, 2, 2, 2).long()
    p = torch.softmax(logits, dim=1)
    fp = p[:, 1].sum()
    tversky = 1 - 1e-5 / (0.3 * fp + 1e-5)
    focal = (-((1 - p[:, 0]) ** 2) * p[:, 0].log()).mean()
    assert torch.allclose(tversky_focal()(logits, background), tversky + focal, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_named_in_an_experiment(name: str) -> None:
    assert Training.model_validate({"loss": name}).loss == name
