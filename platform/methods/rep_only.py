"""RepOnly: the stable features alone, without the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch


@dataclass(frozen=True)
class RepOnly:
    """Input r = IN(F(x)): safe under a shift, but blind to what only the image shows."""

    name: ClassVar[str] = "rep_only"
    acts_on: ClassVar[str] = "input"
    needs_features: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    source: ClassVar[str] = "the DropGen paper's stable-only model"

    def in_channels(self, feature_channels: int) -> int:
        """The extractor's channels."""
        return feature_channels

    def plan(self, generator: np.random.Generator, feature_channels: int) -> np.ndarray:
        """Keeps every feature channel."""
        return np.ones(feature_channels, dtype=bool)

    def inputs(self, image_b1xyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The features."""
        assert features_bcxyz is not None
        return features_bcxyz

    def loss(self, network: nn.Module, batch: Batch, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The criterion on the features' prediction."""
        return criterion(network(self.inputs(batch.image_b1xyz, batch.features_bcxyz)), batch.label_b1xyz)
