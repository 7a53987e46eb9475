"""Predictors: networks from input channels to class logits, and the registry that builds them by name."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.methods import Method
from dropgen.platform.networks import segresnet, swin_unetr, unet
from dropgen.platform.sizes import SizeRule


class Predictor(Protocol):
    """What a file of this folder offers for the predictor that it is named after."""

    def sizes(self, network: Network) -> SizeRule:
        """The crops that the network takes; raises ConfigError where `network` holds what it cannot be built of."""

    def build(self, network: Network, in_channels: int, classes: int) -> nn.Module:
        """`[B, in_channels, X, Y, Z]` to logits `[B, classes, X, Y, Z]`; raises ConfigError as `sizes` does."""


PREDICTORS: dict[str, Predictor] = {"unet": unet, "segresnet": segresnet, "swin_unetr": swin_unetr}


def build_predictor(network: Network, in_channels: int, classes: int) -> nn.Module:
    """The predictor `[B, in_channels, X, Y, Z] -> logits [B, classes, X, Y, Z]`.

    Raises:
        ConfigError: An option is not one that the predictor can be built with.
    """
    return PREDICTORS[network.name].build(network, in_channels, classes)


def build_network(
    network: Network, method: Method, feature_channels: int, classes: int, image_channels: int = 1
) -> nn.Module:
    """What a method trains: the configured predictor, with what the method puts around it or into its layers.

    Raises:
        ConfigError: As `build_predictor`, or the method takes no such predictor.
    """
    require_layers(network, method)
    return method.network(
        lambda width: build_predictor(network, width, classes), feature_channels, classes, image_channels
    )


def require_layers(network: Network, method: Method) -> None:
    """Checks that a method finds the layers that it reaches into.

    Raises:
        ConfigError: It needs the flat UNet, and the predictor is another.
    """
    if method.needs_unet and network.name != "unet":
        raise ConfigError(
            f"method '{method.name}' reaches into the layers of the UNet, which network.name = '{network.name}' does "
            "not have; set network.name to unet or take the method out"
        )


def size_rule(network: Network, method: Method) -> SizeRule:
    """The crops that what a method trains takes: the predictor's, or those of the method's own network.

    Raises:
        ConfigError: An option is not one that the predictor can be built with.
    """
    return PREDICTORS[network.name].sizes(network) if method.sizes is None else method.sizes


def require_crop_fits(network: Network, crop: tuple[int, int, int]) -> None:
    """Checks a crop in voxels against the predictor's size rule.

    Raises:
        ConfigError: An axis breaks it, or an option is not one that the predictor can be built with.
    """
    PREDICTORS[network.name].sizes(network).require(crop)
