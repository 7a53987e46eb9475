"""ERM: empirical risk minimisation on the image alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch


@dataclass(frozen=True)
class Erm:
    """The baseline every other method is compared with: input x, nothing else."""

    name: ClassVar[str] = "erm"
    acts_on: ClassVar[str] = "nothing"
    needs_features: ClassVar[bool] = False
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    source: ClassVar[str] = "Vapnik, The Nature of Statistical Learning Theory, 1995"

    def in_channels(self, feature_channels: int) -> int:
        """One: the image."""
        return 1

    def plan(self, generator: np.random.Generator, feature_channels: int) -> np.ndarray:
        """Keeps the image."""
        return np.ones(1, dtype=bool)

    def inputs(self, image_b1xyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The image."""
        return image_b1xyz

    def loss(self, network: nn.Module, batch: Batch, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The criterion on the image's prediction."""
        return criterion(network(batch.image_b1xyz), batch.label_b1xyz)
