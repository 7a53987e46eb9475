"""One convolution with fixed random weights: features that nobody trained, of any number of channels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.errors import ConfigError
from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry

VERSION = 1
KERNEL = 3


class RandomConv:
    """A 3x3x3 convolution without bias, replicate-padded, its weights drawn from N(0, 1/27).

    Args:
        channels: Number of feature channels.
        seed: Of the weights; the same seed and channels give the same weights everywhere.
        device: Where the weights live.

    Raises:
        ConfigError: A value is not a whole number, or too small.
    """

    name = "random"
    source: ClassVar[str] = "the control with untrained features: nothing is published of it"
    multiple = 1
    min_size = 1
    tile_bytes = 16  # 8 at 64^3 to 128^3
    locality = KERNEL // 2
    halo = KERNEL // 2

    def __init__(self, channels: int = 16, seed: int = 0, device: str = "cpu") -> None:
        for option, value, least in (("channels", channels, 1), ("seed", seed, 0)):
            if type(value) is not int or value < least:
                raise ConfigError(f"random: {option} = {value!r} must be a whole number, at least {least}")
        self.channels = channels
        self.fingerprint = f"random-v{VERSION}-seed{seed}-channels{channels}"
        weights = np.random.default_rng(seed).standard_normal((channels, 1, *(KERNEL,) * 3), dtype=np.float32)
        self._weights = torch.from_numpy(weights / KERNEL**1.5).to(device)

    def channel_permutation(self, symmetry: AxisSymmetry) -> None:
        """A random kernel has no symmetry."""

    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> None:
        """Needs nothing of the whole volume."""

    @torch.no_grad()
    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw features `[B, channels, X, Y, Z]`."""
        with torch.autocast(image_b1xyz.device.type, enabled=False):
            padded = nnf.pad(image_b1xyz.float(), (KERNEL // 2,) * 6, mode="replicate")
            return nnf.conv3d(padded, self._weights)
