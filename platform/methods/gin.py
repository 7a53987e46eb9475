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
    to [0, 1]. At inference it is only repeated. Of an image of several channels each passes through a network of its
    own, as an image of its own.

    Attributes:
        channels: How often the image is repeated: 3 as published, or 1 as DG-TTA uses it in 3D.
    """

    channels: int = 3

    name: ClassVar[str] = "gin"
    acts_on: ClassVar[str] = "input"
    best_seed: ClassVar[bool] = True
    under_dropgen: ClassVar[bool] = True
    source: ClassVar[str] = "Ouyang et al., Causality-inspired single-source domain generalization, IEEE TMI 2022"

    def __post_init__(self) -> None:
        require_choice(self.name, "channels", self.channels, (1, 3))

    def in_channels(self, feature_channels: int, image_channels: int = 1) -> int:
        """The image, repeated."""
        return self.channels * image_channels

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Every channel of every sample under a network of its own."""
        crops = zip(image_bcxyz, generators, strict=True)
        return torch.stack([self.restyled(crop_mxyz, generator) for crop_mxyz, generator in crops]), label_bcxyz

    def restyled(self, crop_mxyz: Tensor, generator: np.random.Generator) -> Tensor:
        """One crop repeated, each channel changed with its repetitions; `[channels * M, X, Y, Z]`, M by M."""
        of_channel = [
            random_intensities(channel_1xyz.expand(self.channels, -1, -1, -1), generator)
            for channel_1xyz in crop_mxyz.split(1)
        ]
        return torch.stack(of_channel, dim=1).flatten(0, 1)

    def inputs(self, image_bmxyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The image, repeated."""
        return image_bmxyz.repeat(1, self.channels, 1, 1, 1)
