"""What all methods share that give the network the image and the stable features side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.method import Criterion, Method


@dataclass(frozen=True)
class Joint(Method):
    """Input u = [x; r], r = IN(F(x)): the image's M channels, 1 as a rule, and behind them the extractor's."""

    acts_on: ClassVar[str] = "input"
    needs_features: ClassVar[bool] = True

    def in_channels(self, feature_channels: int, image_channels: int = 1) -> int:
        """The image's and the extractor's channels."""
        return image_channels + feature_channels

    def inputs(self, image_bmxyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The concatenation u = [x; r]."""
        assert features_bcxyz is not None
        return torch.cat((image_bmxyz, features_bcxyz), dim=1)

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction from u."""
        return criterion(network(self.inputs(batch.image_bcxyz, batch.features_bcxyz)), batch.label_bcxyz)
