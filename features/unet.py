"""The flat 3D UNet family: anatomix is one member, the predictor another.

One sequential list of modules, so that a layer is named by its index (anatomix's penultimate tap is
59). Convolutions are 3x3x3, "same", reflect-padded, without bias; every one but the last is followed
by BatchNorm and ReLU; max-pooling halves, nearest upsampling doubles; a skip connection is
concatenated as [encoder, upsampled].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """A UNet as one flat list of modules.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        base: Channels at full resolution; doubled by every downsampling.
        downs: Number of downsamplings.
        convs: Convolutions per encoder level after the stem's; the decoder always has two.

    Shape:
        `[B, in_channels, X, Y, Z]` to `[B, out_channels, X, Y, Z]`; every axis divisible by
        `2**downs` and at least `2 * 2**downs`.
    """

    def __init__(self, in_channels: int, out_channels: int, base: int, downs: int, convs: int = 2) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(downs + 1)]
        layers: list[nn.Module] = []
        self._skip_at: dict[int, int] = {}
        skips: list[int] = []

        def block(inputs: int, outputs: int) -> None:
            layers.extend((_conv(inputs, outputs), nn.BatchNorm3d(outputs), nn.ReLU()))

        block(in_channels, base)
        previous = base
        for level, width in enumerate(widths):
            for _ in range(convs):
                block(previous, width)
                previous = width
            if level < downs:
                skips.append(len(layers) - 1)
                layers.append(nn.MaxPool3d(2))
        for width, skip in zip(reversed(widths[:-1]), reversed(skips), strict=True):
            self._skip_at[len(layers)] = skip
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            block(previous + width, width)
            block(width, width)
            previous = width
        layers.append(_conv(previous, out_channels))
        self.model = nn.ModuleList(layers)
        self.divisor = 2**downs
        self.min_size = 2 * 2**downs

    def forward(self, x_bcxyz: Tensor, tap: int | None = None) -> Tensor:
        """Runs the list, up to and including module `tap` when one is given."""
        kept: dict[int, Tensor] = {}
        wanted = set(self._skip_at.values())
        for index, layer in enumerate(self.model):
            x_bcxyz = layer(x_bcxyz)
            if index in self._skip_at:
                x_bcxyz = torch.cat((kept.pop(self._skip_at[index]), x_bcxyz), dim=1)
            if index in wanted:
                kept[index] = x_bcxyz
            if index == tap:
                break
        return x_bcxyz


def _conv(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=False)
