"""MixUp: crops and labels of a batch are averaged in pairs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.console import warn
from dropgen.errors import ConfigError
from dropgen.platform.methods.method import Method


@dataclass(frozen=True)
class MixUp(Method):
    """With probability p, x' = w x + (1 - w) x[pi] and the same of the one-hot labels; w ~ Beta(alpha, alpha).

    pi is a random permutation of the batch, so a sample may meet itself. Crops of different places are averaged
    voxel by voxel. With several workers each mixes within its own share of the batch.

    Attributes:
        p: Probability that a batch is mixed.
        alpha: Above 0; 1 makes w uniform.
        per_sample: Whether every sample draws its own w; as published the batch shares one.
    """

    p: float = 0.5
    alpha: float = 1.0
    per_sample: bool = False

    name: ClassVar[str] = "mixup"
    acts_on: ClassVar[str] = "input"
    under_dropgen: ClassVar[bool] = True
    needs_online: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018"

    def __post_init__(self) -> None:
        p: object = self.p  # a YAML file may hold anything
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p <= 1:
            raise ConfigError(f"mixup: p = {p!r} must be a number from 0 to 1")
        alpha: object = self.alpha
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
            raise ConfigError(f"mixup: alpha = {alpha!r} must be a number above 0")
        if type(self.per_sample) is not bool:
            raise ConfigError(f"mixup: per_sample = {self.per_sample!r} must be true or false")

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and class probabilities, or the batch as it is."""
        samples = len(image_bcxyz)
        if samples == 1:
            _warn_alone()
            return image_bcxyz, label_bcxyz
        first = generators[0]
        if first.random() >= self.p:
            return image_bcxyz, label_bcxyz
        partner = torch.from_numpy(first.permutation(samples))
        drawing = generators if self.per_sample else [first]
        weight = image_bcxyz.new_tensor([generator.beta(self.alpha, self.alpha) for generator in drawing])
        truth_bkxyz = nnf.one_hot(label_bcxyz[:, 0], classes).movedim(-1, 1).to(image_bcxyz.dtype)
        return mix(image_bcxyz, partner, weight), mix(truth_bkxyz, partner, weight)


def mix(x_bcxyz: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Weight * x + (1 - weight) * x[partner], with one weight for the batch or `[B]`."""
    weight_b1111 = weight.view(-1, 1, 1, 1, 1)
    return weight_b1111 * x_bcxyz + (1 - weight_b1111) * x_bcxyz[partner]


@functools.cache
def _warn_alone() -> None:
    warn("mixup: a batch of one sample per worker has no partner to mix with; raise training.batch")
