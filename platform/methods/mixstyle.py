"""MixStyle: feature statistics of one sample mixed with those of another, in the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from dropgen.platform.methods.checks import require_count, require_number, require_unet
from dropgen.platform.methods.method import MakePredictor, Method

EPSILON = 1e-6  # under the root, as published: a constant channel has the deviation 1e-3


@dataclass(frozen=True)
class MixStyle(Method):
    """Mixes the channel means and deviations of the batch at the end of the first encoder levels.

    A scanner's style lives in these statistics, so the network meets styles between those it was given. Acts after a
    level's last ReLU, before pooling: the skip connection carries the mixed features. At inference nothing happens.

    Attributes:
        p: Probability that one level mixes in one step, in [0, 1].
        alpha: Parameter of Beta(alpha, alpha), which the share of the own statistics is drawn from; above 0.
        levels: How many encoder levels from the top mix. A UNet with fewer mixes at the end of all it has.
    """

    p: float = 0.5
    alpha: float = 0.1
    levels: int = 3

    name: ClassVar[str] = "mixstyle"
    acts_on: ClassVar[str] = "layers"
    needs_unet: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "Zhou et al., Domain Generalization with MixStyle, ICLR 2021"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1]")
        require_number(self.name, "alpha", self.alpha, "(0, inf)")
        require_count(self.name, "levels", self.levels, at_least=1)

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The UNet with a MixStyle layer at the end of each chosen level.

        Raises:
            ConfigError: The predictor is no flat UNet.
        """
        unet = require_unet(self.name, predictor(self.in_channels(feature_channels, image_channels)))
        for index in unet.level_ends[: self.levels]:
            unet.model[index] = nn.Sequential(unet.model[index], MixStyleLayer(self.p, self.alpha))
        return unet


class MixStyleLayer(nn.Module):
    """Mixes statistics with probability p per forward pass in training; the identity in eval mode.

    Args:
        p: Probability in [0, 1].
        alpha: Parameter of Beta(alpha, alpha).
    """

    def __init__(self, p: float, alpha: float) -> None:
        super().__init__()
        self.p = p
        self.alpha = alpha

    def forward(self, h_bcxyz: Tensor) -> Tensor:
        """Pairs every sample with one of a random permutation of the batch."""
        if not self.training or torch.rand(()) >= self.p:
            return h_bcxyz
        share_b = Beta(self.alpha, self.alpha).sample((len(h_bcxyz),))
        return mix_styles(h_bcxyz, share_b.to(h_bcxyz.device), torch.randperm(len(h_bcxyz)))


def mix_styles(h_bcxyz: Tensor, share_b: Tensor, partner_b: Tensor) -> Tensor:
    """Gives every sample the statistics `share * own + (1 - share) * partner's`, per channel.

    Means and deviations are taken in float32 over X, Y, Z (unbiased) and carry no gradient, so that the gradient's
    factor is the mixed deviation over the own.

    Args:
        h_bcxyz: `[B, C, X, Y, Z]`, more than one voxel.
        share_b: `[B]` in [0, 1].
        partner_b: `[B]` indices into the batch.

    Returns:
        Same shape and dtype as `h_bcxyz`.
    """
    values = h_bcxyz.float()
    variance, mean = torch.var_mean(values.detach(), dim=(2, 3, 4), keepdim=True)
    deviation = (variance + EPSILON).sqrt()
    share = share_b.view(-1, 1, 1, 1, 1)
    mixed_deviation = share * deviation + (1 - share) * deviation[partner_b]
    mixed_mean = share * mean + (1 - share) * mean[partner_b]
    return ((values - mean) / deviation * mixed_deviation + mixed_mean).to(h_bcxyz.dtype)
