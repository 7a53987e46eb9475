"""One suite over every registered training method; a new one is tested unasked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.platform.methods import METHODS, Method, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import build_predictor
from dropgen.platform.training.loop import dice_ce

CHANNELS, CLASSES = 4, 3


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return build(Component.of(request.param))


def network_for(method: Method) -> nn.Module:
    torch.manual_seed(0)
    return build_predictor(Network(base=2, downs=1), method.in_channels(CHANNELS), CLASSES)


def batch_for(
    method: Method, size: tuple[int, int, int] = (4, 6, 8), samples: int = 2, constant: bool = False
) -> Batch:
    generator, draws = torch.Generator().manual_seed(1), np.random.default_rng(1)
    kept = torch.from_numpy(np.stack([method.plan(draws, CHANNELS) for _ in range(samples)]))
    image = torch.rand(samples, 1, *size, generator=generator)
    features = torch.randn(samples, CHANNELS, *size, generator=generator) if method.needs_features else None
    if constant:
        image, features = torch.zeros_like(image), None if features is None else torch.zeros_like(features)
    return Batch(image, torch.randint(CLASSES, (samples, 1, *size), generator=generator), features, kept)


def loss_and_gradients(method: Method, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    network = network_for(method)
    loss = method.loss(network, batch, dice_ce())
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", [(4, 4, 4), (4, 6, 10)])
def test_every_parameter_gets_a_finite_gradient(method: Method, samples: int, size: tuple[int, int, int]) -> None:
    loss, gradients = loss_and_gradients(method, batch_for(method, size, samples))
    assert loss.ndim == 0
    assert len(gradients) == len(list(network_for(method).parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_constant_image_gives_a_finite_loss(method: Method) -> None:
    assert torch.isfinite(loss_and_gradients(method, batch_for(method, constant=True))[0])


def test_the_same_seed_gives_the_same_loss_and_gradients(method: Method) -> None:
    one, two = (loss_and_gradients(method, batch_for(method)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_inference_takes_the_width_that_was_promised_and_draws_nothing(method: Method) -> None:
    batch = batch_for(method)
    state = torch.get_rng_state()
    one, two = (method.inputs(batch.image_b1xyz, batch.features_bcxyz) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape[1] == method.in_channels(CHANNELS)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_leaves_no_hook_behind(method: Method) -> None:
    network = network_for(method)
    method.loss(network, batch_for(method), dice_ce())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(method: Method) -> None:
    network, batch = network_for(method), batch_for(method)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = method.loss(network, batch, dice_ce())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_every_value_of_the_search_space_can_be_built(method: Method) -> None:
    for name, values in method.search_space.items():
        for value in values:
            assert getattr(build(Component.of(method.name, **{name: value})), name) == value


def test_it_says_what_it_is_and_where_it_comes_from(method: Method) -> None:
    assert METHODS[method.name] is type(method)
    assert type(method).__doc__
    assert method.source
    assert method.acts_on
