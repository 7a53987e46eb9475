"""MixUp: crops and labels of a batch are averaged in pairs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.console import warn
from dropgen.platform.methods.checks import require_choice, require_number
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
    one_class: ClassVar[bool] = True
    under_dropgen: ClassVar[bool] = True
    needs_online: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1]")
        require_number(self.name, "alpha", self.alpha, "(0, inf)")
        require_choice(self.name, "per_sample", self.per_sample, (False, True))

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
