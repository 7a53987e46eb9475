"""Condition 1: whether the joint risk pulls the stable slices of the first layer where the stable-only risk does."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dropgen.errors import ConfigError
from dropgen.platform.methods import Criterion


class Agreement(NamedTuple):
    """The inner product of the two gradients, and its cosine: NaN where one of them vanishes."""

    cosine: float
    inner: float


def gradient_agreement(
    network: nn.Module, image_bmxyz: Tensor, features_bcxyz: Tensor, label_bcxyz: Tensor, criterion: Criterion
) -> Agreement:
    """Compares d criterion(f([x; r])) / d W_S with d criterion(f([0; r])) / d W_S, the network in eval mode.

    W_S are the slices of the first convolution that read r: `weight[:, M:]`. Nothing is dropped or rescaled. The
    network is left as it was: parameters, buffers, gradients and modes.

    Args:
        network: Takes the joint input [x; r], image first.
        image_bmxyz: x, `[B, M, X, Y, Z]`.
        features_bcxyz: r, instance-normalised, `[B, C, X, Y, Z]`.
        label_bcxyz: What the criterion takes.
        criterion: Logits and label to a scalar.

    Raises:
        ConfigError: The network does not begin with a convolution of M + C channels.
    """
    images = image_bmxyz.shape[1]
    convolution = _first_convolution(network, images, features_bcxyz.shape[1])
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        joint, stable = (
            _gradient(network, convolution, torch.cat((image, features_bcxyz), dim=1), label_bcxyz, criterion)
            for image in (image_bmxyz, torch.zeros_like(image_bmxyz))
        )
    finally:
        for module, mode in modes.items():
            module.training = mode
    joint, stable = (gradient[:, images:].double().flatten() for gradient in (joint, stable))
    inner = float(joint @ stable)
    norms = math.sqrt(float(joint @ joint) * float(stable @ stable))
    return Agreement(max(-1.0, min(1.0, inner / norms)) if norms > 0 else math.nan, inner)


def _gradient(
    network: nn.Module, convolution: nn.Conv3d, u_bcxyz: Tensor, label_bcxyz: Tensor, criterion: Criterion
) -> Tensor:
    with torch.enable_grad():
        loss = criterion(network(u_bcxyz), label_bcxyz)
        (gradient,) = torch.autograd.grad(loss, convolution.weight)
    return gradient


def _first_convolution(network: nn.Module, images: int, features: int) -> nn.Conv3d:
    width = images + features
    first = next((module for module in network.modules() if isinstance(module, nn.Conv3d)), None)
    if first is None or first.in_channels != width:
        raise ConfigError(
            f"{type(network).__name__} does not begin with a convolution of {width} channels, the image and "
            f"{features} features; condition 1 can be measured on networks of that joint input only"
        )
    return first
