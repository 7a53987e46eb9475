"""SwinUNETR: a shifted-window transformer as encoder, convolutions as decoder (Hatamizadeh et al., BrainLes 2021)."""

from __future__ import annotations

from monai.networks.nets import SwinUNETR
from torch import nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.sizes import SizeRule

DOWNS = 5  # patches of 2 voxels, then four mergings
WIDTH_STEP = 12  # MONAI's divisor of the embedding
# The published decoder has instance norm, which fails on the single voxel that a crop of 32 leaves at the bottom:
# group norm keeps nearly its statistics where the width is small (3 channels a group of 12) and takes such crops too.
GROUPS = 4


def sizes(network: Network) -> SizeRule:
    """Divisible by 32, and no more: see `GROUPS`.

    Raises:
        ConfigError: As `build`.
    """
    _require_options(network)
    return SizeRule(2**DOWNS, 2**DOWNS, f"the {DOWNS} downsamplings of swin_unetr", "choose another network.name")


def build(network: Network, in_channels: int, classes: int) -> nn.Module:
    """`base` is the width of the embedding, published at 24 and 48; depth and heads are as published, the norm is not.

    Raises:
        ConfigError: `base` is not divisible by 12, `downs` is not 5 or `convs` is set.
    """
    _require_options(network)
    norm = ("group", {"num_groups": GROUPS})
    return SwinUNETR(
        in_channels=in_channels, out_channels=classes, feature_size=network.base, norm_name=norm, spatial_dims=3
    )


def _require_options(network: Network) -> None:
    if network.base % WIDTH_STEP:
        raise ConfigError(
            f"network.base = {network.base} does not fit swin_unetr: it must be divisible by {WIDTH_STEP}; set it to "
            f"{max(WIDTH_STEP, round(network.base / WIDTH_STEP) * WIDTH_STEP)}"
        )
    if network.downs != DOWNS:
        raise ConfigError(f"network.downs = {network.downs} does not fit swin_unetr, which has {DOWNS}; remove it")
    if network.convs != Network.model_fields["convs"].default:
        raise ConfigError(f"network.convs = {network.convs} has no meaning for swin_unetr; remove it")
