"""SegResNet: residual blocks, group norm, additive skips (Myronenko, BrainLes 2018, without its autoencoder branch)."""

from __future__ import annotations

from monai.networks.nets import SegResNet
from torch import nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.sizes import SizeRule

GROUPS = 8  # of the group norm, as published


def sizes(network: Network) -> SizeRule:
    """Divisible by 2**downs, so that every skip fits what it is added to.

    Raises:
        ConfigError: As `build`.
    """
    _require_options(network)
    factor = 2**network.downs
    return SizeRule(factor, factor, f"{network.downs} downsamplings", "lower network.downs")


def build(network: Network, in_channels: int, classes: int) -> nn.Module:
    """`base` channels at full resolution, doubled by each of `downs` strided convolutions.

    Encoder levels have 1, 2, ..., 2, 4 residual blocks from the top, decoder levels one each: for 3 downsamplings
    the published 1, 2, 2, 4.

    Raises:
        ConfigError: `base` is not divisible by the 8 groups, or `convs` is set.
    """
    _require_options(network)
    return SegResNet(
        spatial_dims=3,
        init_filters=network.base,
        in_channels=in_channels,
        out_channels=classes,
        norm=("GROUP", {"num_groups": GROUPS}),
        blocks_down=(1, *[2] * (network.downs - 1), 4),
        blocks_up=(1,) * network.downs,
    )


def _require_options(network: Network) -> None:
    if network.base % GROUPS:
        raise ConfigError(
            f"network.base = {network.base} does not fit segresnet: it must be divisible by the {GROUPS} groups of its "
            f"norm; set it to {max(GROUPS, round(network.base / GROUPS) * GROUPS)}"
        )
    if network.convs != Network.model_fields["convs"].default:
        raise ConfigError(
            f"network.convs = {network.convs} has no meaning for segresnet, whose blocks have two convolutions; "
            "remove it"
        )
