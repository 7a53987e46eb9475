"""The condition-1 probe: its exact cases, and that it leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.evaluation.analyses.condition1 import Agreement, gradient_agreement
from dropgen.platform.networks import build_predictor
from dropgen.platform.training.losses import dice_ce

CHANNELS, CLASSES, SIZE = 3, 3, (4, 4, 4)


def crops(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image, features and label."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(2, 1, *SIZE, generator=generator),
        torch.randn(2, CHANNELS, *SIZE, generator=generator),
        torch.randint(CLASSES, (2, 1, *SIZE), generator=generator),
    )


def network(seed: int = 0, name: str = "unet") -> nn.Module:
    torch.manual_seed(seed)
    return build_predictor(Network.model_validate({"name": name, "base": 8, "downs": 1}), 1 + CHANNELS, CLASSES)


def first(predictor: nn.Module) -> nn.Conv3d:
    return next(module for module in predictor.modules() if isinstance(module, nn.Conv3d))


def probe(predictor: nn.Module, image: Tensor, features: Tensor, label: Tensor) -> Agreement:
    return gradient_agreement(predictor, image, features, label, dice_ce())


@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_without_image_weights_the_cosine_is_exactly_one(name: str) -> None:
    predictor = network(name=name)
    with torch.no_grad():
        first(predictor).weight[:, :1] = 0
    agreement = probe(predictor, *crops())
    assert agreement.cosine == 1.0
    assert agreement.inner > 0


@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_without_image_the_cosine_is_exactly_one(name: str) -> None:
    image, features, label = crops()
    assert probe(network(name=name), torch.zeros_like(image), features, label).cosine == 1.0


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_the_cosine_lies_between_minus_one_and_one(seed: int) -> None:
    agreement = probe(network(seed), *crops(seed))
    assert -1 <= agreement.cosine <= 1
    assert math.copysign(1, agreement.inner) == math.copysign(1, agreement.cosine)


def test_it_is_the_cosine_of_what_backward_gives() -> None:
    predictor = network().eval()
    image, features, label = crops()
    gradients = []
    for shown in (image, torch.zeros_like(image)):
        predictor.zero_grad()
        dice_ce()(predictor(torch.cat((shown, features), dim=1)), label).backward()
        gradient = first(predictor).weight.grad
        assert gradient is not None
        gradients.append(gradient[:, 1:].flatten())
    expected = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert probe(predictor, image, features, label).cosine == pytest.approx(float(expected), abs=1e-5)


def test_a_gradient_that_vanishes_has_no_cosine() -> None:
    image, features, label = crops()
    agreement = probe(network(), image, torch.zeros_like(features), label)
    assert math.isnan(agreement.cosine)
    assert agreement.inner == 0


def test_a_probe_leaves_the_network_and_the_generator_as_they_were() -> None:
    predictor = network().train()
    frozen = next(module for module in predictor.modules() if isinstance(module, nn.BatchNorm3d)).eval()
    image, features, label = crops()
    dice_ce()(predictor(torch.cat((image, features), dim=1)), label).backward()
    state = {name: value.clone() for name, value in predictor.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in predictor.parameters()]
    modes = [module.training for module in predictor.modules()]
    generator = torch.get_rng_state()
    with torch.no_grad():
        probe(predictor, image, features, label)
    assert all(torch.equal(value, state[name]) for name, value in predictor.state_dict().items())
    assert all(
        before is after or (before is not None and after is not None and torch.equal(before, after))
        for before, after in zip(gradients, (p.grad for p in predictor.parameters()), strict=True)
    )
    assert [module.training for module in predictor.modules()] == modes
    assert not frozen.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_network_of_the_image_alone_is_refused_with_what_was_looked_for() -> None:
    predictor = build_predictor(Network(base=2, downs=1), 1, CLASSES)
    with pytest.raises(
        ConfigError, match="UNet does not begin with a convolution of 4 channels, the image and 3 features"
    ):
        probe(predictor, *crops())
