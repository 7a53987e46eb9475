"""Training on the toy to a stationary point, through the methods' own masks and losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dropgen.errors import DivergenceError
from dropgen.platform.methods import Method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.theory.toy import TRAINING, Toy, Weights

SIDE = 4  # a crop of 64 voxels shares one mask
GRADIENT = 1e-6


class Fit(NamedTuple):
    """A predictor at the end of training.

    Attributes:
        weights: With the weights of all feature channels summed, since they hold the same S.
        loss: The training loss there.
        gradient: The largest entry of its gradient.
    """

    weights: Weights
    loss: float
    gradient: float


def cross_entropy(logits_bkxyz: Tensor, label_bcxyz: Tensor) -> Tensor:
    """The mean over all voxels: a proper scoring rule, which DiceCE is not."""
    return functional.cross_entropy(logits_bkxyz, label_bcxyz[:, 0])


def training_batch(toy: Toy, method: Method, channels: int, crops: int, generator: np.random.Generator) -> Batch:
    """Crops of independent voxels, U as the image and S in each of `channels` features, one planned mask per crop.

    Crops come before masks: generators of one seed give all methods the same crops.
    """
    drawn = toy.sample(generator, (crops, 1, SIDE, SIDE, SIDE), TRAINING)
    kept_bc = np.stack([method.plan(generator, channels) for _ in range(crops)])
    label, image, stable = map(torch.from_numpy, drawn)
    return Batch(label_bcxyz=label, image_bcxyz=image, features_bcxyz=stable.expand(-1, channels, -1, -1, -1),
                 kept_bc=torch.from_numpy(kept_bc))  # fmt: skip


def linear(channels: int) -> nn.Conv3d:
    """Two logits from the image and the features of one voxel, without bias; all weights are 0."""
    layer = nn.Conv3d(1 + channels, 2, kernel_size=1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    return layer


def weights_of(layer: nn.Conv3d) -> Weights:
    """The layer as a predictor from U and S."""
    image, *stable = (layer.weight[1] - layer.weight[0]).flatten().tolist()
    return Weights(image, sum(stable))


def fit(method: Method, batch: Batch) -> Fit:
    """Minimises a method's loss on one batch, which is convex here, from zero weights.

    Raises:
        DivergenceError: The end is no stationary point.
    """
    layer = linear(batch.kept_bc.shape[1] - 1)
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=500,
        tolerance_grad=GRADIENT / 10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = method.loss(layer, batch, cross_entropy)
        value.backward()
        return value

    optimizer.step(loss)
    end = loss().item()
    assert layer.weight.grad is not None
    gradient = float(layer.weight.grad.abs().max())
    if not gradient < GRADIENT:
        raise DivergenceError(
            f"{method.name} on the toy ended where the gradient is {gradient:.1e}, not below {GRADIENT}"
        )
    return Fit(weights_of(layer), end, gradient)
