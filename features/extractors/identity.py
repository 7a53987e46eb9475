"""The image itself as its features: what a method does with an extractor that adds nothing."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry

VERSION = 1


class Identity:
    """One channel, the image in unit scale; the instance norm before the network is all that changes it.

    Args:
        device: None of its business; every extractor takes one.
    """

    name = "identity"
    source: ClassVar[str] = "the control in which the features are the image: nothing is published of it"
    channels = 1
    multiple = 1
    min_size = 1
    tile_bytes = 16  # 5 to 13 from 128^3 down to 64^3
    locality = 0
    halo = 0
    fingerprint = f"identity-v{VERSION}"

    def __init__(self, device: str = "cpu") -> None:
        """Nothing has to be built."""

    def channel_permutation(self, symmetry: AxisSymmetry) -> tuple[int, ...]:
        """Every symmetry is exact, and there is one channel to permute."""
        return (0,)

    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> None:
        """Needs nothing of the whole volume."""

    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """The image, `[B, 1, X, Y, Z]`."""
        return image_b1xyz.detach().float()
