"""Predictors: networks from input channels to class logits."""

from __future__ import annotations

from torch import nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.features.unet import UNet


def build_predictor(network: Network, in_channels: int, classes: int) -> nn.Module:
    """The predictor `[B, in_channels, X, Y, Z] -> logits [B, classes, X, Y, Z]`."""
    return UNet(in_channels, classes, base=network.base, downs=network.downs, convs=network.convs)


def require_crop_fits(network: Network, crop: tuple[int, int, int]) -> None:
    """Checks a crop in voxels against the network's downsamplings.

    Raises:
        ConfigError: An axis is not divisible by 2**downs or below 2 * 2**downs (reflect padding
            needs two voxels at the deepest level).
    """
    factor = 2**network.downs
    for axis, size in zip("xyz", crop, strict=True):
        if size % factor or size < 2 * factor:
            legal = max(2 * factor, round(size / factor) * factor)
            raise ConfigError(
                f"crop axis {axis} = {size} voxels does not fit {network.downs} downsamplings: it must be divisible by "
                f"{factor} and at least {2 * factor}; set the study's crop to {legal} there or lower network.downs"
            )
