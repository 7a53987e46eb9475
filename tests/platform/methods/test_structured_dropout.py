"""Structured dropout: groups fall as wholes, never both, and the expectation stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.structured_dropout import StructuredDropout

CHANNELS = 5


class Recorder(nn.Module):
    """An identity that remembers its input."""

    def forward(self, x_bcxyz: Tensor) -> Tensor:
        self.seen = x_bcxyz
        return x_bcxyz


def draws(p: float, count: int = 10000) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.stack([StructuredDropout(p=p).plan(generator, CHANNELS) for _ in range(count)])


def seen(method: StructuredDropout, kept: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees of random crops under the given masks, and the whole u."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(len(kept), 1, 2, 2, 2, generator=generator)
    features = torch.randn(len(kept), CHANNELS, 2, 2, 2, generator=generator)
    network = Recorder()
    batch = Batch(image, torch.zeros(len(kept), 1, 2, 2, 2).long(), features, kept)
    method.loss(network, batch, lambda logits, label: logits.sum())
    return network.seen, method.inputs(image, features)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_features_share_one_fate_and_something_always_survives(p: float) -> None:
    kept = draws(p)
    assert (kept[:, 1:] == kept[:, 1:2]).all()
    assert kept.any(axis=1).all()


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_each_group_falls_with_half_of_p(p: float) -> None:
    kept = draws(p)
    for found, chance in ((~kept[:, 0], p / 2), (~kept[:, 1], p / 2), (kept.all(axis=1), 1 - p)):
        assert abs(found.mean() - chance) < 4 * (chance * (1 - chance) / len(kept)) ** 0.5


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_the_expectation_of_the_input_is_the_input(p: float) -> None:
    masks = torch.tensor([[True] * 6, [True] + [False] * 5, [False] + [True] * 5])
    chances = torch.tensor([1 - p, p / 2, p / 2])
    method = StructuredDropout(p=p)
    factors = torch.stack([seen(method, mask[None])[0] / seen(method, mask[None])[1] for mask in masks])
    mean = (factors * chances[:, None, None, None, None, None]).sum(dim=0)
    assert torch.allclose(mean, torch.ones_like(mean), atol=1e-6)


def test_without_rescale_a_survivor_is_untouched() -> None:
    kept = torch.tensor([[True] + [False] * CHANNELS])
    u_dropped, u = seen(StructuredDropout(p=0.5, rescale=False), kept)
    assert torch.equal(u_dropped[:, :1], u[:, :1])
    assert not u_dropped[:, 1:].any()


def test_p_zero_is_plain_concatenation_bit_for_bit() -> None:
    kept = torch.from_numpy(draws(0, count=8))
    u_dropped, u = seen(StructuredDropout(p=0), kept)
    assert torch.equal(u_dropped, u)


@pytest.mark.parametrize("options", [{"p": 1}, {"p": -0.1}, {"p": True}, {"p": "half"}, {"rescale": 2}])
def test_an_option_outside_its_range_is_refused_with_its_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        build(Component.of("structured_dropout", **options))
