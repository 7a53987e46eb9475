"""Squeeze and excitation: gates in (0, 1), and the squeeze that cannot see instance-normalised features."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import ChannelSELayer
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.extractors import instance_norm
from dropgen.platform.methods import build
from dropgen.platform.methods.squeeze_excite import Gate, SqueezeExcite

CHANNELS = 17


def normed_input() -> Tensor:
    """u = [x; r] of two samples."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 6, 6, 6, generator=generator)
    features = torch.randn(2, CHANNELS - 1, 6, 6, 6, generator=generator) ** 3
    return SqueezeExcite().inputs(image, instance_norm(features))


def test_closed_second_layer_halves_every_channel() -> None:
    gate, u = Gate(CHANNELS, "mean"), normed_input()
    nn.init.zeros_(gate.expand.weight)
    nn.init.zeros_(gate.expand.bias)
    assert torch.equal(gate(u), 0.5 * u)


@pytest.mark.parametrize("squeeze", ["mean", "absmean"])
def test_a_channel_is_multiplied_by_its_gate_which_lies_in_0_to_1(squeeze: str) -> None:
    torch.manual_seed(0)
    gate, u = Gate(CHANNELS, squeeze), normed_input()
    gates = gate.gates(u)
    assert gates.shape == (2, CHANNELS)
    assert ((gates > 0) & (gates < 1)).all()
    assert torch.allclose(gate(u)[1, 3], gates[1, 3] * u[1, 3])


def test_the_mean_cannot_see_normalised_features_and_the_absolute_mean_can() -> None:
    u = normed_input()
    blind, seeing = (Gate(CHANNELS, squeeze).squeezed(u) for squeeze in ("mean", "absmean"))
    assert blind[:, 1:].abs().max() < 1e-5
    assert blind[:, 0].min() > 0.1
    assert seeing[:, 1:].min() > 0.1


@pytest.mark.parametrize("channels", [13, 17, 2])
def test_with_the_mean_it_is_the_layer_of_monai_with_reduction_2(channels: int) -> None:
    gate, layer = Gate(channels, "mean"), ChannelSELayer(3, channels, r=2)
    assert gate.reduce.out_features == channels // 2
    gate_state = {
        "fc.0.weight": gate.reduce.weight,
        "fc.0.bias": gate.reduce.bias,
        "fc.2.weight": gate.expand.weight,
        "fc.2.bias": gate.expand.bias,
    }
    layer.load_state_dict(gate_state)
    u = torch.rand(2, channels, 4, 4, 4)
    assert torch.allclose(gate(u), layer(u), atol=1e-6)


def test_gradient_reaches_both_layers_of_every_gate() -> None:
    torch.manual_seed(0)
    network = SqueezeExcite(layers=2).network(lambda width: nn.Conv3d(width, 3, 1), CHANNELS - 1, 3)
    network(normed_input()).square().mean().backward()
    gates = [module for module in network.modules() if isinstance(module, Gate)]
    assert len(gates) == 2
    for gate in gates:
        for layer in (gate.reduce, gate.expand):
            assert layer.weight.grad is not None
            assert layer.weight.grad.any()


def test_gates_are_active_at_inference() -> None:
    network = SqueezeExcite().network(lambda width: nn.Identity(), CHANNELS - 1, 3).eval()
    u = normed_input()
    assert not torch.allclose(network(u), u)


@pytest.mark.parametrize("options", [{"squeeze": "prenorm"}, {"squeeze": 3}, {"layers": 0}, {"layers": True}])
def test_an_option_outside_its_range_is_refused_with_its_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        build(Component.of("squeeze_excite", **options))
