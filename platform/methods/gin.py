"""GIN: every crop gets the intensities that a random shallow network makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dropgen.platform.methods.checks import require_choice
from dropgen.platform.methods.method import Method
from dropgen.platform.methods.random_cnn import random_intensities


@dataclass(frozen=True)
class Gin(Method):
    """Global intensity non-linear augmentation of every training crop; anatomy and label stay.

    The image is repeated `channels` times and passes through `random_intensities`; the result is not clipped
    to [0, 1]. At inference it is only repeated.

    Attributes:
        channels: 3 as published, or 1 as DG-TTA uses it in 3D.
    """

    channels: int = 3

    name: ClassVar[str] = "gin"
    acts_on: ClassVar[str] = "input"
    best_seed: ClassVar[bool] = True
    under_dropgen: ClassVar[bool] = True
    source: ClassVar[str] = "Ouyang et al., Causality-inspired single-source domain generalization, IEEE TMI 2022"

    def __post_init__(self) -> None:
        require_choice(self.name, "channels", self.channels, (1, 3))

    def in_channels(self, feature_channels: int) -> int:
        """The image, repeated."""
        return self.channels

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Every sample under a network of its own."""
        crops = zip(self.inputs(image_bcxyz, None), generators, strict=True)
        return torch.stack([random_intensities(crop_cxyz, generator) for crop_cxyz, generator in crops]), label_bcxyz

    def inputs(self, image_b1xyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The image, repeated."""
        return image_b1xyz.expand(-1, self.channels, -1, -1, -1)
