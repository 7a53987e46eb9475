"""The flat 3D UNet family: anatomix is one member, the predictor another.

One sequential list of modules, so that a layer is named by its index (anatomix's penultimate tap is
59). Convolutions are 3x3x3, "same", reflect-padded; every one but the last is followed by a norm and
ReLU; pooling halves, upsampling doubles; a skip connection is concatenated as [encoder, upsampled].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Style:
    """What members of the family differ in beside their size; the defaults are the paper's predictor and anatomix.

    Attributes:
        norm: Channels to the module after every convolution but the last.
        bias: Whether convolutions have one.
        pool: Factor to the module that divides every axis by it.
        upsample: Mode of `nn.Upsample`.
    """

    norm: Callable[[int], nn.Module] = nn.BatchNorm3d
    bias: bool = False
    pool: Callable[[int], nn.Module] = nn.MaxPool3d
    upsample: str = "nearest"


PUBLISHED = Style()


def _plainly(index: int, module: nn.Module, x_bcxyz: Tensor) -> Tensor:
    result: Tensor = module(x_bcxyz)
    return result


class UNet(nn.Module):
    """A UNet as one flat list of modules.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        base: Channels at full resolution; doubled by every downsampling.
        downs: Number of downsamplings.
        convs: Convolutions per encoder level after the stem's; the decoder always has two.
        style: The kinds of its layers.

    Attributes:
        level_ends: For every encoder level from the top, the deepest included, the index of its last ReLU.

    Shape:
        `[B, in_channels, X, Y, Z]` to `[B, out_channels, X, Y, Z]`; every axis divisible by
        `2**downs` and at least `2 * 2**downs`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, base: int, downs: int, convs: int = 2, style: Style = PUBLISHED
    ) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(downs + 1)]
        layers: list[nn.Module] = []
        self._skip_at: dict[int, int] = {}
        skips: list[int] = []

        def block(inputs: int, outputs: int) -> None:
            layers.extend((_conv(inputs, outputs, style.bias), style.norm(outputs), nn.ReLU()))

        block(in_channels, base)
        previous = base
        for level, width in enumerate(widths):
            for _ in range(convs):
                block(previous, width)
                previous = width
            if level < downs:
                skips.append(len(layers) - 1)
                layers.append(style.pool(2))
        self.level_ends = (*skips, len(layers) - 1)
        for width, skip in zip(reversed(widths[:-1]), reversed(skips), strict=True):
            self._skip_at[len(layers)] = skip
            layers.append(nn.Upsample(scale_factor=2, mode=style.upsample))
            block(previous + width, width)
            block(width, width)
            previous = width
        layers.append(_conv(previous, out_channels, style.bias))
        self.model = nn.ModuleList(layers)
        self.divisor = 2**downs
        self.min_size = 2 * 2**downs

    def forward(
        self, x_bcxyz: Tensor, tap: int | None = None, call: Callable[[int, nn.Module, Tensor], Tensor] = _plainly
    ) -> Tensor:
        """Runs the list.

        Args:
            x_bcxyz: The input.
            tap: Index of the module to stop after; None runs all.
            call: Applies one module, given its index, to its input. What a layer must know beyond that comes in here,
                not through the module's own state, which threads that serve one network would share.
        """
        x_bcxyz, _ = self._run(x_bcxyz, {}, 0, len(self.model) if tap is None else tap + 1, call)
        return x_bcxyz

    def encode(self, x_bcxyz: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The deepest encoder output, and the skip connections that `decode` wants with it."""
        return self._run(x_bcxyz, {}, 0, self.level_ends[-1] + 1)

    def decode(self, deepest_bcxyz: Tensor, skips: Mapping[int, Tensor]) -> Tensor:
        """Logits from what `encode` returned; may be called more than once."""
        x_bcxyz, _ = self._run(deepest_bcxyz, dict(skips), self.level_ends[-1] + 1, len(self.model))
        return x_bcxyz

    def _run(
        self,
        x_bcxyz: Tensor,
        skips: dict[int, Tensor],
        start: int,
        stop: int,
        call: Callable[[int, nn.Module, Tensor], Tensor] = _plainly,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        wanted = set(self._skip_at.values())
        for index in range(start, stop):
            x_bcxyz = call(index, self.model[index], x_bcxyz)
            if index in self._skip_at:
                x_bcxyz = torch.cat((skips.pop(self._skip_at[index]), x_bcxyz), dim=1)
            if index in wanted:
                skips[index] = x_bcxyz
        return x_bcxyz, skips


def _conv(inputs: int, outputs: int, bias: bool) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=bias)
