"""The first convolution over the surviving channels is the whole one, without its zeros."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.features.unet import UNet
from dropgen.platform.methods import build as build_method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.survivors import predict
from dropgen.platform.networks import build_network
from dropgen.platform.training.losses import dice_ce

CHANNELS = 6


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CHANNELS, 3, base=4, downs=1).double()


def some_input(samples: int) -> Tensor:
    return torch.rand(samples, CHANNELS, 4, 6, 8, generator=torch.Generator().manual_seed(1)).double()


def over_survivors(network: nn.Module, u_bcxyz: Tensor, factor_bc: Tensor) -> Tensor:
    return predict(network, u_bcxyz[:, :1], u_bcxyz[:, 1:], factor_bc)


@settings(max_examples=20)
@given(st.lists(st.lists(st.booleans(), min_size=CHANNELS, max_size=CHANNELS), min_size=1, max_size=3))
def test_logits_and_gradients_are_those_of_the_whole_convolution(rows: list[list[bool]]) -> None:
    factor_bc = 4 * torch.tensor(rows).double()
    u_bcxyz = some_input(len(rows))
    whole, sliced = unet(), unet()
    expected = whole(u_bcxyz * factor_bc[:, :, None, None, None])
    found = over_survivors(sliced, u_bcxyz, factor_bc)
    assert torch.allclose(found, expected, atol=1e-12)
    expected.square().sum().backward()
    found.square().sum().backward()
    for one, other in zip(whole.parameters(), sliced.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-7, atol=1e-9 * float(one.grad.abs().max()))


def test_a_channel_that_no_sample_keeps_is_never_read() -> None:
    kept_bc = torch.tensor([[True, False, True, False, False, True], [True, False, False, False, False, False]])
    u_bcxyz, factor_bc = some_input(2), kept_bc.double()
    poisoned = u_bcxyz.masked_fill(~kept_bc.any(0)[None, :, None, None, None], float("nan"))
    network = unet()
    assert torch.equal(over_survivors(network, poisoned, factor_bc), over_survivors(network, u_bcxyz, factor_bc))


def test_the_memory_layout_of_the_predictor_is_kept() -> None:
    network = build_network(Network(base=4, downs=1), build_method(Component.of("dropgen")), CHANNELS - 1, 3)
    seen: list[Tensor] = []
    network.model[1].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    kept_bc = torch.ones(2, CHANNELS, dtype=torch.bool)
    kept_bc[:, 3:] = False
    over_survivors(network, some_input(2).float(), kept_bc.float())
    assert seen[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("wrapped", [False, True])
def test_dropgen_multiplies_by_the_survivors_alone_also_where_several_workers_wrap_the_network(wrapped: bool) -> None:
    class Wrapped(nn.Module):
        """Hands its arguments on, as DistributedDataParallel does."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor, **keywords: object) -> Tensor:
            result: Tensor = self.module(*inputs, **keywords)
            return result

    network: nn.Module = unet().float()
    shapes: list[torch.Size] = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is torch.nn.functional.conv3d or function is torch.conv3d:
                shapes.append(args[1].shape)
            return function(*args, **(kwargs or {}))

    kept_bc = torch.tensor([[True, False, False, True, False, False], [False, True, False, False, False, False]])
    label = torch.zeros(2, 1, 4, 6, 8, dtype=torch.long)
    u_bcxyz = some_input(2).float()
    batch = Batch(u_bcxyz[:, :1], label, u_bcxyz[:, 1:], kept_bc)
    method = build_method(Component.of("dropgen", p=0.75))
    with Watched():
        method.loss(Wrapped(network) if wrapped else network, batch, dice_ce())
    assert shapes[0][1] == 3
