from __future__ import annotations

import numpy as np
import pytest
import torch

from dropgen.features.studies.prepare import Prepared
from dropgen.platform.adaptation import Target
from dropgen.platform.adaptation.alpha import Alpha, fuse
from dropgen.platform.segmenter import Segmenter

ALPHAS = [i / 10 for i in range(11)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def logits(seed: int, classes: int = 3) -> torch.Tensor:
    return torch.randn(classes, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def test_zero_is_the_erm_model_and_one_the_stable_one(erm: Segmenter, rep_only: Segmenter, prepared: Prepared) -> None:
    target = Target(erm, rep_only, prepared)
    assert torch.equal(Alpha(alpha=0).scores(target, rng()), erm.logits(prepared))
    assert torch.equal(Alpha(alpha=1).scores(target, rng()), rep_only.logits(prepared))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_logits_give_their_own_labels(alpha: float) -> None:
    assert torch.equal(fuse(logits(0), logits(0), alpha).argmax(dim=0), logits(0).argmax(dim=0))


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_a_constant_per_voxel_changes_no_label(alpha: float) -> None:
    shift = logits(2, classes=1)
    plain = fuse(logits(0), logits(1), alpha).argmax(dim=0)
    assert torch.equal(fuse(logits(0) + shift, logits(1) - 2 * shift, alpha).argmax(dim=0), plain)


def test_every_voxel_of_two_classes_changes_sides_once_at_most() -> None:
    masks = torch.stack([fuse(logits(0, 2), logits(1, 2), alpha).argmax(dim=0) for alpha in ALPHAS])
    flips = masks.diff(dim=0).abs().sum(dim=0)
    assert flips.max() == 1
    assert torch.equal(flips.bool(), masks[0] != masks[-1])


def test_normalising_makes_the_scale_of_a_confident_model_count_less(
    erm: Segmenter, rep_only: Segmenter, prepared: Prepared
) -> None:
    target = Target(erm, rep_only, prepared)
    expected = 0.5 * rep_only.logits(prepared).log_softmax(dim=0) + 0.5 * erm.logits(prepared).log_softmax(dim=0)
    assert torch.allclose(Alpha(normalise="logsoftmax").scores(target, rng()), expected)
