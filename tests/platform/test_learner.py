from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dropgen.config import Component, Training
from dropgen.features.unet import UNet
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.erm import Erm
from dropgen.platform.training.learner import Learner


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1))


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 1, 8, 8, 8, generator=generator)
    return Batch(image, (image > 0.5).long(), None, torch.ones(2, 1, dtype=torch.bool), seed)


def test_a_step_depends_on_the_batch_seed_and_not_on_what_was_drawn_before() -> None:
    losses = []
    for drawn, seed in ((0, 3), (5, 3), (0, 4)):
        net = network()
        torch.rand(drawn)
        losses.append(Learner(net, Erm(), Training(steps=10), "cpu").step(net, batch(seed)).item())
    assert losses[0] == losses[1] != losses[2]


def test_a_device_may_carry_its_index() -> None:
    losses = []
    for device in ("cpu", "cpu:0"):
        net = network()
        losses.append(Learner(net, Erm(), Training(steps=10), device).step(net, batch(3)).item())
    assert losses[0] == losses[1]


def test_a_step_trains_whatever_mode_the_network_was_left_in() -> None:
    net = network()
    learner = Learner(net, Erm(), Training(steps=10, learning_rate=0.1), "cpu")
    before = copy.deepcopy(net.state_dict())
    net.eval()
    loss = learner.step(net, batch(0))
    assert net.training
    assert loss.shape == ()
    assert not loss.requires_grad
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items() if "0.bias" not in name)


def test_the_learning_rate_falls_along_a_cosine_over_all_steps() -> None:
    net = network()
    learner = Learner(net, Erm(), Training(steps=4, learning_rate=0.1), "cpu")
    rates = []
    for step in range(4):
        rates.append(learner.scheduler.get_last_lr()[0])
        learner.step(net, batch(step))
    assert rates == pytest.approx([0.05 * (1 + torch.tensor(torch.pi * step / 4).cos().item()) for step in range(4)])
    assert learner.scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-8)


def test_the_optimizer_is_adamw_over_every_parameter_at_the_published_values() -> None:
    net = network()
    optimizer = Learner(net, Erm(), Training(), "cpu").optimizer
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in net.parameters()]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-4, (0.9, 0.999), 1e-8, 1e-5)


def test_the_learning_rate_is_whole_at_first_half_in_the_middle_and_none_at_the_end() -> None:
    net = network()
    learner, rates = Learner(net, Erm(), Training(steps=6), "cpu"), []
    for step in range(7):
        rates.append(learner.scheduler.get_last_lr()[0])
        if step < 6:
            learner.step(net, batch(step))
    assert (rates[0], rates[3], rates[6]) == (2e-4, pytest.approx(1e-4), pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("name", ["erm", "rep_only", "dropgen"])
def test_a_batch_that_shows_nothing_explodes_nothing_and_training_goes_on(name: str, value: float) -> None:
    method = build(Component.of(name, **({"p": 0} if name == "dropgen" else {})))
    torch.manual_seed(0)
    net = UNet(method.in_channels(2), 2, base=2, downs=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.bias)  # as after some steps: with biases of 0 nothing at all would flow
    learner = Learner(net, method, Training(steps=10), "cpu")
    kept = torch.ones(2, method.in_channels(2), dtype=torch.bool)
    label = torch.randint(0, 2, (2, 1, 16, 16, 16))
    nothing = Batch(torch.full(label.shape, value), label, torch.zeros(2, 2, 16, 16, 16), kept)
    assert torch.isfinite(learner.step(net, nothing))
    assert all(not parameter.grad.any() for parameter in net.parameters() if parameter.grad is not None)
    before = copy.deepcopy(net.state_dict())
    something = Batch(torch.rand(label.shape), label, torch.randn(2, 2, 16, 16, 16), kept)
    assert torch.isfinite(learner.step(net, something))
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())
    assert all(not torch.equal(parameter, before[key]) for key, parameter in net.named_parameters())
