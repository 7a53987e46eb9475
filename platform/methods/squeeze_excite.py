"""Squeeze and excitation: learned gates on the input channels, open or closed by what each channel holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dropgen.platform.methods.checks import require_choice, require_count
from dropgen.platform.methods.joint import Joint
from dropgen.platform.methods.method import MakePredictor

SQUEEZES = ("mean", "absmean")


@dataclass(frozen=True)
class SqueezeExcite(Joint):
    """Gates on u = [x; r] in place of dropout, trained with the predictor and active at inference.

    s = squeeze(u), e = sigmoid(W2 relu(W1 s + b1) + b2), u'[c] = e[c] u[c], with half as many hidden units as
    channels.

    r is instance-normalised, so its spatial mean is 0 whatever the image shows: with "mean", the faithful squeeze,
    the gates see the mean of the image alone. "absmean" takes the mean of |u|, which still tells channels apart. A
    squeeze of the features before their norm is not offered: a method sees them after it.

    Attributes:
        squeeze: "mean" or "absmean", over the voxels of a channel.
        layers: Gates in a row, at least 1; the paper does not say how many it uses.
    """

    squeeze: str = "mean"
    layers: int = 1

    kind: ClassVar[str] = "ablation"
    name: ClassVar[str] = "squeeze_excite"
    search_space: ClassVar[Mapping[str, tuple[str, ...]]] = {"squeeze": SQUEEZES}
    source: ClassVar[str] = "the DropGen paper's fusion ablation; Hu et al., CVPR 2018"

    def __post_init__(self) -> None:
        require_choice(self.name, "squeeze", self.squeeze, SQUEEZES)
        require_count(self.name, "layers", self.layers, at_least=1)

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The gates, then the predictor."""
        channels = self.in_channels(feature_channels, image_channels)
        gates = (Gate(channels, self.squeeze) for _ in range(self.layers))
        return nn.Sequential(*gates, predictor(channels))


class Gate(nn.Module):
    """One squeeze-and-excitation layer, `[B, C, X, Y, Z]` to the same shape.

    Args:
        channels: C, at least 2.
        squeeze: "mean" or "absmean".
    """

    def __init__(self, channels: int, squeeze: str) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.reduce = nn.Linear(channels, channels // 2)
        self.expand = nn.Linear(channels // 2, channels)

    def forward(self, u_bcxyz: Tensor) -> Tensor:
        """The gated channels."""
        return u_bcxyz * self.gates(u_bcxyz)[:, :, None, None, None]

    def gates(self, u_bcxyz: Tensor) -> Tensor:
        """The gates e `[B, C]`, in (0, 1)."""
        return torch.sigmoid(self.expand(torch.relu(self.reduce(self.squeezed(u_bcxyz)))))

    def squeezed(self, u_bcxyz: Tensor) -> Tensor:
        """One number per channel, `[B, C]`."""
        return (u_bcxyz.abs() if self.squeeze == "absmean" else u_bcxyz).mean(dim=(2, 3, 4))
