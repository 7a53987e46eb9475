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
    """Input u = [x; r], r = IN(F(x)): the image is channel 0, the extractor's channels follow."""

    acts_on: ClassVar[str] = "input"
    needs_features: ClassVar[bool] = True

    def in_channels(self, feature_channels: int) -> int:
        """The image and the extractor's channels."""
        return 1 + feature_channels

    def inputs(self, image_b1xyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The concatenation u = [x; r]."""
        assert features_bcxyz is not None
        return torch.cat((image_b1xyz, features_bcxyz), dim=1)

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction from u."""
        return criterion(network(self.inputs(batch.image_bcxyz, batch.features_bcxyz)), batch.label_bcxyz)
