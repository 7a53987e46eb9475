"""One suite over every registered predictor."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.adaptation.batchnorm import batchnorm_layers
from dropgen.platform.catalogue import Entry, catalogue
from dropgen.platform.methods import Method, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import PREDICTORS, build_network, build_predictor, require_crop_fits
from dropgen.platform.training.losses import dice_ce

CHANNELS, CLASSES = 4, 3
TINY = {
    "unet": Network(base=2, downs=1),
    "segresnet": Network(name="segresnet", base=8, downs=1),
    "swin_unetr": Network(name="swin_unetr", base=12, downs=5),
}


@pytest.fixture(params=sorted(PREDICTORS))
def network(request: pytest.FixtureRequest) -> Network:
    return TINY[request.param]


def smallest_crop(network: Network) -> tuple[int, int, int]:
    return (PREDICTORS[network.name].sizes(network).smallest,) * 3


def batch_for(method: Method, size: tuple[int, int, int]) -> Batch:
    generator, draws = torch.Generator().manual_seed(1), np.random.default_rng(1)
    image, features = (torch.randn(2, width, *size, generator=generator) for width in (1, CHANNELS))
    kept = torch.from_numpy(np.stack([method.plan(draws, CHANNELS) for _ in range(2)]))
    return Batch(image, (image > 0.5).long() + (image > 1).long(), features, kept)


def test_every_predictor_has_a_tiny_configuration_here() -> None:
    assert set(TINY) == set(PREDICTORS)


@pytest.mark.parametrize("in_channels", [1, 5])
def test_logits_have_one_channel_per_class_on_the_grid_of_the_input(network: Network, in_channels: int) -> None:
    rule = PREDICTORS[network.name].sizes(network)
    size = (rule.smallest, rule.smallest + rule.multiple, rule.smallest)
    torch.manual_seed(0)
    logits = build_predictor(network, in_channels, CLASSES)(torch.rand(1, in_channels, *size))
    assert logits.shape == (1, CLASSES, *size)
    assert torch.isfinite(logits).all()
    assert logits.min() < 0


@pytest.mark.parametrize("entry", [entry for entry in catalogue() if entry.predictors], ids=lambda entry: entry.name)
def test_a_predictor_that_is_not_listed_for_a_method_is_refused_and_one_that_is_listed_works(
    network: Network, entry: Entry
) -> None:
    listed = network.name in entry.predictors
    if entry.name in ADAPTATIONS:
        batch_norms = list(batchnorm_layers(build_predictor(network, 1, CLASSES)))
        assert bool(batch_norms) or not ADAPTATIONS[entry.name].needs_unet or not listed
        assert listed or not batch_norms
    elif listed:
        build_network(network, build(Component.of(entry.name)), CHANNELS, CLASSES)
    else:
        with pytest.raises(ConfigError, match=rf"'{re.escape(entry.name)}' reaches into .* network.name to unet"):
            build_network(network, build(Component.of(entry.name)), CHANNELS, CLASSES)


def test_gradient_reaches_every_parameter(network: Network) -> None:
    torch.manual_seed(0)
    predictor = build_predictor(network, 2, CLASSES)
    predictor(torch.randn(2, 2, *smallest_crop(network))).square().mean().backward()
    reached = {name: parameter.grad for name, parameter in predictor.named_parameters()}
    assert [name for name, gradient in reached.items() if gradient is None or not torch.isfinite(gradient).all()] == []
    assert [name for name, gradient in reached.items() if gradient is not None and not gradient.any()] == []


def test_a_size_that_does_not_fit_is_answered_with_one_that_does(network: Network) -> None:
    rule = PREDICTORS[network.name].sizes(network)
    legal = smallest_crop(network)
    require_crop_fits(network, legal)
    for size in (rule.smallest - rule.multiple, rule.smallest + 1):
        with pytest.raises(ConfigError) as caught:
            require_crop_fits(network, (legal[0], size, legal[2]))
        assert f"crop axis y = {size} voxels does not fit" in str(caught.value)
        assert f"divisible by {rule.multiple} and at least {rule.smallest}" in str(caught.value)
        offered = re.search(r"set the study's crop to (\d+) there", str(caught.value))
        assert offered is not None
        require_crop_fits(network, (legal[0], int(offered[1]), legal[2]))


def test_one_voxel_beside_the_rule_breaks_the_network(network: Network) -> None:
    """The rule is no stricter than the network: else it would refuse crops for nothing."""
    odd = tuple(size + 1 for size in smallest_crop(network))
    with pytest.raises((RuntimeError, ValueError)):
        build_predictor(network, 1, CLASSES)(torch.rand(1, 1, *odd))


@pytest.mark.parametrize("name", ["erm", "dropgen"])
def test_one_step_lowers_the_loss_of_a_fixed_batch(network: Network, name: str) -> None:
    method = build(Component.of(name))
    batch = batch_for(method, smallest_crop(network))
    torch.manual_seed(0)
    trained = build_network(network, method, CHANNELS, CLASSES).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-2)
    before = method.loss(trained, batch, dice_ce())
    before.backward()
    optimizer.step()
    assert method.loss(trained, batch, dice_ce()) < before


def test_a_checkpoint_gives_the_same_network(network: Network) -> None:
    one, other = (build_predictor(network, 1, CLASSES).eval() for _ in range(2))
    x_bcxyz = torch.rand(1, 1, *smallest_crop(network))
    assert not torch.equal(one(x_bcxyz), other(x_bcxyz))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x_bcxyz), other(x_bcxyz))


def test_no_predictor_draws_at_inference(network: Network) -> None:
    predictor, x_bcxyz = build_predictor(network, 1, CLASSES).eval(), torch.rand(1, 1, *smallest_crop(network))
    state = torch.get_rng_state()
    assert torch.equal(predictor(x_bcxyz), predictor(x_bcxyz))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(predictor, nn.Module)
