"""ERM, RepOnly and DropGen: the properties that define them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.extractors import instance_norm
from dropgen.features.extractors.mind import Mind
from dropgen.features.unet import UNet
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.rep_only import RepOnly
from dropgen.platform.training.losses import dice_ce

CHANNELS = 5


class Recorder(nn.Module):
    """An identity that remembers its input."""

    def forward(self, x_bcxyz: Tensor) -> Tensor:
        self.seen = x_bcxyz
        return x_bcxyz


def batch_for(method: DropGen, seed: int = 0, samples: int = 4) -> Batch:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    kept = torch.from_numpy(np.stack([method.plan(generator, CHANNELS) for _ in range(samples)]))
    image, features = torch.rand(samples, 1, 4, 4, 4), torch.randn(samples, CHANNELS, 4, 4, 4)
    return Batch(image, torch.randint(0, 2, (samples, 1, 4, 4, 4)), features, kept)


def seen_by_the_network(method: DropGen, batch: Batch) -> Tensor:
    network = Recorder()
    method.loss(network, batch, lambda logits, label: logits.sum())
    return network.seen


def test_p_zero_is_plain_concatenation_bit_for_bit() -> None:
    batch = batch_for(DropGen(p=0))
    assert batch.kept_bc.all()
    assert torch.equal(
        seen_by_the_network(DropGen(p=0), batch), DropGen().inputs(batch.image_bcxyz, batch.features_bcxyz)
    )


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_every_channel_is_zero_or_exactly_u_over_one_minus_p(p: float) -> None:
    method = DropGen(p=p)
    batch = batch_for(method, samples=32)
    u = method.inputs(batch.image_bcxyz, batch.features_bcxyz)
    seen = seen_by_the_network(method, batch)
    for b in range(32):
        for c in range(1 + CHANNELS):
            expected = u[b, c] * torch.tensor(1 / (1 - p)) if batch.kept_bc[b, c] else torch.zeros_like(u[b, c])
            assert torch.equal(seen[b, c], expected)


def test_it_equals_dropout3d_under_the_same_mask() -> None:
    u = torch.randn(8, 1 + CHANNELS, 4, 4, 4)
    dropped = torch.nn.functional.dropout3d(u, 0.5, training=True)
    kept = dropped.flatten(2).any(dim=2)
    batch = Batch(u[:, :1], torch.zeros(8, 1, 4, 4, 4, dtype=torch.long), u[:, 1:], kept)
    assert torch.allclose(seen_by_the_network(DropGen(p=0.5), batch), dropped)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_masks_are_independent_bernoulli_draws(p: float) -> None:
    generator = np.random.default_rng(3)
    draws = np.stack([DropGen(p=p).plan(generator, CHANNELS) for _ in range(4000)])
    sigma = (p * (1 - p) / 4000) ** 0.5
    assert np.abs(draws.mean(axis=0) - (1 - p)).max() < 4 * sigma
    between_channels = np.corrcoef(draws.T) - np.eye(1 + CHANNELS)
    assert np.abs(between_channels).max() < 4 / 4000**0.5
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 4 / 4000**0.5


def test_the_expectation_of_the_input_is_the_input() -> None:
    generator = np.random.default_rng(0)
    draws = np.stack([DropGen(p=0.75).plan(generator, CHANNELS) for _ in range(20000)]) / 0.25
    assert np.abs(draws.mean(axis=0) - 1).max() < 0.06


def test_a_dropped_channel_gets_no_gradient_in_the_first_layer() -> None:
    method = DropGen(p=0.5)
    network = UNet(1 + CHANNELS, 2, base=2, downs=1)
    kept = torch.tensor([[True, False, True, True, False, True]])
    torch.manual_seed(0)
    batch = Batch(torch.rand(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4).long(), torch.randn(1, CHANNELS, 4, 4, 4), kept)
    method.loss(network, batch, dice_ce()).backward()
    gradient = next(network.parameters()).grad
    assert gradient is not None
    assert torch.equal(gradient.abs().sum(dim=(0, 2, 3, 4)) > 0, kept[0])


def test_a_batch_without_any_channel_teaches_nothing_and_explodes_nothing() -> None:
    method = DropGen(p=0.5)
    torch.manual_seed(0)
    network = UNet(1 + CHANNELS, 2, base=2, downs=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.bias)  # as after some steps: with biases of 0 nothing at all would flow
    label = torch.randint(0, 2, (2, 1, 8, 8, 8))
    batch = Batch(torch.rand(2, 1, 8, 8, 8), label, torch.randn(2, CHANNELS, 8, 8, 8), torch.zeros(2, 6, dtype=bool))
    method.loss(network, batch, dice_ce()).backward()
    assert all(not parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)
    one = dataclasses.replace(
        batch, kept_bc=batch.kept_bc.index_put((torch.tensor([0]), torch.tensor([0])), torch.tensor(True))
    )
    method.loss(network, one, dice_ce()).backward()
    norms = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    assert 0 < max(norms) < 100


def test_same_generator_state_same_masks() -> None:
    one, two = (DropGen(p=0.5).plan(np.random.default_rng(9), 12) for _ in range(2))
    assert np.array_equal(one, two)


def test_min_keep_switches_one_channel_on_where_all_were_dropped() -> None:
    generator = np.random.default_rng(0)
    assert not all(DropGen(p=0.9).plan(generator, 1).any() for _ in range(50))
    assert all(DropGen(p=0.9, min_keep=1).plan(generator, 1).any() for _ in range(200))


def test_rep_only_equals_dropgen_without_its_image_slice() -> None:
    torch.manual_seed(0)
    joint, stable = UNet(1 + CHANNELS, 2, base=2, downs=1).eval(), UNet(CHANNELS, 2, base=2, downs=1).eval()
    state = joint.state_dict()
    first = next(iter(state))
    state[first][:, :1] = 0
    stable.load_state_dict({**state, first: state[first][:, 1:]})
    image, features = torch.rand(1, 1, 4, 4, 4), torch.randn(1, CHANNELS, 4, 4, 4)
    joined = joint(DropGen().inputs(image, features))
    assert torch.allclose(joined, stable(RepOnly().inputs(image, features)), atol=1e-6)


def test_rep_only_does_not_see_a_change_of_the_image_that_its_features_do_not_see() -> None:
    image = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shown = {name: (x.float(), instance_norm(Mind()(x))) for name, x in (("plain", image), ("inverted", 1 - image))}
    for method, blind in ((RepOnly(), True), (DropGen(), False)):
        torch.manual_seed(0)
        network = UNet(method.in_channels(12), 2, base=2, downs=1).eval()
        plain, inverted = (network(method.inputs(*shown[name])) for name in ("plain", "inverted"))
        assert torch.allclose(plain, inverted, atol=1e-5) == blind


def test_twenty_steps_of_erm_at_one_in_a_thousand_lower_the_loss_of_a_fixed_batch() -> None:
    method = build(Component.of("erm"))
    torch.manual_seed(0)
    network = UNet(method.in_channels(CHANNELS), 2, base=4, downs=2)
    image = torch.rand(2, 1, 8, 8, 8)
    batch = Batch(image, (image > 0.5).long(), None, torch.ones(2, 1, dtype=torch.bool))
    optimizer, losses = torch.optim.AdamW(network.parameters(), lr=1e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = method.loss(network, batch, dice_ce())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(("name", "width"), [("erm", 1), ("rep_only", 12), ("dropgen", 13)])
def test_input_width_follows_the_extractor(name: str, width: int) -> None:
    method = build(Component.of(name))
    assert method.in_channels(12) == width
    assert len(method.plan(np.random.default_rng(0), 12)) == width


@pytest.mark.parametrize("p", [1, -0.1, 1.5, "half", True, float("nan")])
def test_p_outside_its_range_is_refused_with_its_value(p: object) -> None:
    with pytest.raises(ConfigError, match=f"p = {p!r}"):
        build(Component.of("dropgen", p=p))


def test_unknown_names_and_options_suggest_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dropgen'"):
        build(Component.of("dropgn"))
    with pytest.raises(ConfigError, match="did you mean 'min_keep'"):
        build(Component.of("dropgen", min_kep=1))


def test_maskgen_is_another_name_of_dropgen() -> None:
    assert build(Component.of("maskgen", p=0.5)) == DropGen(p=0.5)


@pytest.mark.parametrize("make", [dice_ce])
def test_the_loss_matches_its_closed_forms(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> None:
    criterion = make()
    label = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    truth = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    assert criterion(50 * truth, label) < 1e-3
    uniform = torch.zeros(2, 3, 4, 4, 4)
    overlap = truth[:, 1:].sum(dim=(2, 3, 4)) / 3
    expected = 1 - (2 * overlap + 1e-5) / (64 / 3 + truth[:, 1:].sum(dim=(2, 3, 4)) + 1e-5)
    assert torch.allclose(criterion(uniform, label), expected.mean() + np.log(3), atol=1e-5)
