"""MixUp: image and label of a batch mixed in pairs, by the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.platform.methods import build
from dropgen.platform.methods import mixup as mixup_file
from dropgen.platform.methods.mixup import MixUp, mix
from dropgen.platform.training.losses import dice_ce

SAMPLES, CLASSES, SHAPE = 4, 3, (3, 2, 4)


def generators(seed: int = 0, count: int = SAMPLES) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, sample)) for sample in range(count)]


def tracers() -> Tensor:
    """Sample s is 1 at voxel s and 0 elsewhere: what a mixed sample holds at voxel s is the share of sample s."""
    return torch.eye(SAMPLES, int(np.prod(SHAPE))).view(SAMPLES, 1, *SHAPE)


def labels(seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (SAMPLES, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def one_hot(label: Tensor) -> Tensor:
    return nnf.one_hot(label[:, 0], CLASSES).movedim(-1, 1).float()


def mixed(method: MixUp, seed: int) -> tuple[Tensor, Tensor]:
    """The share `[mixed, original]` of every original sample in every mixed one, and the probabilities."""
    image, probabilities = method.augment(tracers(), labels(), CLASSES, generators(seed))
    return image.flatten(1)[:, :SAMPLES], probabilities


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_every_sample_is_a_pair_and_the_labels_are_mixed_as_the_images(seed: int, per_sample: bool) -> None:
    shares, probabilities = mixed(MixUp(p=1, per_sample=per_sample), seed)
    assert torch.allclose(shares.sum(dim=1), torch.ones(SAMPLES))
    assert torch.allclose(shares.sum(dim=0), torch.ones(SAMPLES), atol=1e-5) or per_sample
    assert ((shares > 0).sum(dim=1) <= 2).all()
    expected = torch.einsum("mo,okxyz->mkxyz", shares, one_hot(labels()))
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(SAMPLES, *SHAPE))


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_batch_shares_one_weight_unless_every_sample_draws_its_own(per_sample: bool) -> None:
    different = 0
    for seed in range(20):
        own = mixed(MixUp(p=1, per_sample=per_sample), seed)[0].diagonal()
        own = own[own < 1 - 1e-6]
        different += len({round(float(weight), 5) for weight in own}) > 1
    assert different > 10 if per_sample else different == 0


def test_partners_change_from_batch_to_batch() -> None:
    partners = {
        tuple((mixed(MixUp(p=1), seed)[0] * (1 - torch.eye(SAMPLES))).argmax(dim=1).tolist()) for seed in range(20)
    }
    assert len(partners) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_weight_is_a_beta_draw(alpha: float) -> None:
    weights = []
    for seed in range(400):
        shares = mixed(MixUp(p=1, alpha=alpha), seed)[0]
        moved = shares.diagonal() < 1 - 1e-6
        if moved.any():
            weights.append(float(shares.diagonal()[moved][0]))
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(np.mean(weights) - 0.5) < 4 * (variance / len(weights)) ** 0.5
    assert abs(np.var(weights) - variance) < 0.2 * variance


def test_weight_1_changes_nothing_bit_for_bit() -> None:
    image, truth, partner = torch.rand(SAMPLES, 1, *SHAPE), one_hot(labels()), torch.tensor([1, 2, 3, 0])
    assert torch.equal(mix(image, partner, torch.tensor([1.0])), image)
    assert torch.equal(mix(truth, partner, torch.ones(SAMPLES)), truth)


def test_cross_entropy_of_the_mixed_label_is_the_mixed_cross_entropy() -> None:
    logits = torch.randn(SAMPLES, CLASSES, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    label, partner, weight = labels(), torch.tensor([2, 0, 3, 1]), 0.3
    soft = mix(one_hot(label).double(), partner, torch.tensor([weight]).double())
    pair = [nnf.cross_entropy(logits, one[:, 0]) for one in (label, label[partner])]
    assert abs(nnf.cross_entropy(logits, soft) - (weight * pair[0] + (1 - weight) * pair[1])) < 1e-6


def test_the_criterion_takes_the_mixed_labels_and_agrees_on_unmixed_ones() -> None:
    logits = torch.randn(SAMPLES, CLASSES, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(dice_ce()(logits, one_hot(labels())), dice_ce()(logits, labels()), atol=1e-6)
    assert torch.isfinite(dice_ce()(logits, mixed(MixUp(p=1), 0)[1]))


@pytest.mark.parametrize("seed", range(10))
def test_mixed_values_lie_between_those_of_the_pair(seed: int) -> None:
    image = torch.rand(SAMPLES, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    shares, _ = mixed(MixUp(p=1), seed)
    changed, _ = MixUp(p=1).augment(image, labels(), CLASSES, generators(seed))
    for sample in range(SAMPLES):
        pair = image[shares[sample] > 0]
        assert (changed[sample] >= pair.amin(dim=0) - 1e-6).all()
        assert (changed[sample] <= pair.amax(dim=0) + 1e-6).all()


def test_a_batch_of_one_is_left_alone_and_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    mixup_file._warn_alone.cache_clear()
    image, label = torch.rand(1, 1, *SHAPE), labels()[:1]
    for seed in range(3):
        same = MixUp(p=1).augment(image, label, CLASSES, generators(seed, 1))
        assert same == (image, label)
    assert capsys.readouterr().err.count("mixup: a batch of one sample") == 1


def test_p_is_the_chance_that_a_batch_is_mixed() -> None:
    def is_mixed(p: float, seed: int) -> bool:
        image, label = tracers(), labels()
        changed, probabilities = MixUp(p=p).augment(image, label, CLASSES, generators(seed))
        assert probabilities.is_floating_point() or (changed is image and probabilities is label)
        return probabilities.is_floating_point()

    assert not any(is_mixed(0, seed) for seed in range(50))
    assert all(is_mixed(1, seed) for seed in range(50))
    assert abs(np.mean([is_mixed(0.25, seed) for seed in range(400)]) - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("p", value) for value in (-0.1, 1.1, float("nan"), "half", True)],
        *[("alpha", value) for value in (0, -1, float("inf"), float("nan"), "one", True)],
        *[("per_sample", value) for value in (1, "yes")],
    ],
)
def test_a_value_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} = {value!r} must be"):
        build(Component.of("mixup", **{option: value}))
