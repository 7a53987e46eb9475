"""Tversky and focal loss against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dropgen.config import Training
from dropgen.platform.training.losses import LOSSES, build_loss, tversky_focal

CLASSES, VOXELS = 3, 64


def label_and_truth() -> tuple[Tensor, Tensor]:
    """Class indices `[2, 1, 4, 4, 4]` and the same as probabilities."""
    label = torch.randint(CLASSES, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return label, torch.nn.functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1).float()


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
