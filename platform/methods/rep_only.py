"""RepOnly: the stable features alone, without the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.method import Criterion, Method


@dataclass(frozen=True)
class RepOnly(Method):
    """Input r = IN(F(x)): safe under a shift, but blind to what only the image shows."""

    name: ClassVar[str] = "rep_only"
    acts_on: ClassVar[str] = "input"
    needs_features: ClassVar[bool] = True
    source: ClassVar[str] = "the DropGen paper's stable-only model"

    def in_channels(self, feature_channels: int, image_channels: int = 1) -> int:
        """The extractor's channels."""
        return feature_channels

    def inputs(self, image_bmxyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The features."""
        assert features_bcxyz is not None
        return features_bcxyz

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the features' prediction."""
        return criterion(network(self.inputs(batch.image_bcxyz, batch.features_bcxyz)), batch.label_bcxyz)
