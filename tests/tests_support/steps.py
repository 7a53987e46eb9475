"""One training step of a method on a tiny UNet, for tests that compare steps bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.features.unet import UNet
from dropgen.platform.methods import Method, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import build_network
from dropgen.platform.training.losses import dice_ce

TINY = Network(base=2, downs=1)
CLASSES = 3


def network_of(method: Method, feature_channels: int = 0, network: Network = TINY) -> nn.Module:
    """The same initial weights for every method, since layers without parameters draw nothing."""
    torch.manual_seed(0)
    return build_network(network, method, feature_channels, CLASSES)


def unet_of(network: nn.Module) -> UNet:
    (unet,) = [module for module in network.modules() if isinstance(module, UNet)]
    return unet


def batch_of(method: Method, samples: int = 2, feature_channels: int = 0, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(samples, 1, size, size, size, generator=generator)
    label = torch.randint(CLASSES, image.shape, generator=generator)
    features = torch.randn(samples, feature_channels, size, size, size, generator=generator)
    image, label = method.augment(image, label, CLASSES, [np.random.default_rng((1, s)) for s in range(samples)])
    kept = torch.ones(samples, method.in_channels(feature_channels), dtype=torch.bool)
    return Batch(image, label, features if method.needs_features else None, kept, seed=1)


def step(method: Method, network: nn.Module, batch: Batch) -> Tensor:
    """The loss of one training step; its gradients are in the network's parameters."""
    torch.manual_seed(batch.seed)
    network.train().zero_grad()
    loss = method.loss(network, batch, dice_ce())
    loss.backward()
    return loss.detach()


def convolution_gradients(network: nn.Module) -> list[Tensor]:
    """In the order of the layers, whatever a method has put around them."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    return [convolution.weight.grad for convolution in convolutions if convolution.weight.grad is not None]


def loss_of_step(method: Method) -> float:
    """The loss of one step on the batch and from the weights that `assert_same_step` takes."""
    return step(method, network_of(method), batch_of(method)).item()


def assert_same_step(method: Method, reference: str, feature_channels: int = 0, **options: object) -> None:
    """Both give the same loss and the same gradients of all convolutions, bit for bit."""
    other = build(Component.of(reference, **options))
    one, two = network_of(method, feature_channels), network_of(other, feature_channels)
    losses = [
        step(rule, network, batch_of(rule, feature_channels=feature_channels))
        for rule, network in ((method, one), (other, two))
    ]
    assert torch.equal(losses[0], losses[1])
    gradients = convolution_gradients(one), convolution_gradients(two)
    assert gradients[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
