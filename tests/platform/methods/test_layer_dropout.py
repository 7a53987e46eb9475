"""Per-layer dropout: what is dropped, and where nothing is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.methods.layer_dropout import LayerDropout
from tests_support.steps import assert_same_step, network_of, unet_of

CHANNELS = 4


def dropouts(network: nn.Module) -> list[nn.Dropout3d]:
    return [module for module in network.modules() if isinstance(module, nn.Dropout3d)]


def test_the_predictor_of_the_paper_has_23_dropouts() -> None:
    with torch.device("meta"):
        assert len(dropouts(network_of(LayerDropout(), 16, Network()))) == 23


def test_every_relu_is_followed_by_dropout_and_nothing_else_is() -> None:
    unet = unet_of(network_of(LayerDropout(p=0.25), CHANNELS))
    blocks = [module for module in unet.model if isinstance(module, nn.Sequential)]
    assert all(isinstance(block[0], nn.ReLU) and isinstance(block[1], nn.Dropout3d) for block in blocks)
    assert len(blocks) == len(dropouts(unet)) == sum(isinstance(module, nn.BatchNorm3d) for module in unet.model)
    assert all(dropout.p == 0.25 for dropout in dropouts(unet))
    assert isinstance(unet.model[-1], nn.Conv3d)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_in_eval_mode_it_is_the_plain_network(p: float) -> None:
    dropped, plain = network_of(LayerDropout(p=p), CHANNELS), network_of(LayerDropout(p=0), CHANNELS)
    x_bcxyz = torch.randn(2, 1 + CHANNELS, 4, 4, 4)
    assert torch.equal(dropped.eval()(x_bcxyz), plain.eval()(x_bcxyz))
    assert not torch.equal(dropped.train()(x_bcxyz), plain.train()(x_bcxyz))


def test_p_zero_is_a_step_of_dropgen_without_dropout_bit_for_bit() -> None:
    assert_same_step(LayerDropout(p=0), "dropgen", CHANNELS, p=0)


def test_a_skip_carries_whole_channels_either_dropped_or_scaled() -> None:
    unet = unet_of(network_of(LayerDropout(p=0.5), CHANNELS, Network(base=16, downs=1)))
    seen: dict[str, torch.Tensor] = {}
    end = unet.level_ends[0]
    relu = unet.model[end][0]  # type: ignore[index]
    relu.register_forward_hook(lambda module, inputs, output: seen.update(before=output))
    _, skips = unet.train().encode(torch.randn(2, 1 + CHANNELS, 4, 4, 4))
    dropped = (skips[end] == 0).flatten(2).all(dim=2)
    assert 0 < dropped.sum() < dropped.numel()
    assert torch.equal(skips[end][~dropped], 2 * seen["before"][~dropped])


def test_the_input_is_dropped_only_when_asked() -> None:
    plain, dropped = (unet_of(network_of(LayerDropout(include_input=asked), 30)) for asked in (False, True))
    assert isinstance(plain.model[0], nn.Conv3d)
    u = torch.rand(1, 31, 4, 4, 4) + 1
    seen = dropped.train().model[0][0](u)  # type: ignore[index]
    kept = seen.flatten(2).any(dim=2)
    assert 0 < kept.sum() < 31
    assert torch.equal(seen[kept], 2 * u[kept])
    assert torch.equal(plain.eval()(u), dropped.eval()(u))


def test_the_logits_are_never_dropped() -> None:
    torch.manual_seed(3)
    logits = network_of(LayerDropout(p=0.75), CHANNELS).train()(torch.randn(32, 1 + CHANNELS, 4, 4, 4))
    zero = (logits == 0).flatten(2).all(dim=2)
    # A sample is zero only where all that the head reads was dropped, and then in every class at once.
    assert torch.equal(zero.any(dim=1), zero.all(dim=1))
    assert not zero.all()


@pytest.mark.parametrize("p", [1, -0.1, "half", True, float("nan")])
def test_a_p_outside_its_range_is_refused(p: object) -> None:
    with pytest.raises(ConfigError, match=r"layer_dropout: p = .* must be a number in \[0, 1\)"):
        LayerDropout(p=p)  # type: ignore[arg-type]


def test_another_predictor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_dropout reaches into the layers of the flat UNet.*Identity"):
        LayerDropout().network(lambda width: nn.Identity(), 4, 2)
