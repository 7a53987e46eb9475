"""An extractor on images of several channels: it sees each channel as an image of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry

if TYPE_CHECKING:
    from dropgen.features.extractors import Extractor

FLOAT = 4


class EachChannel:
    """Runs an extractor on each of M channels; features and statistics lie channel after channel, M times C and S.

    Args:
        extractor: Takes one channel.
        count: M, at least 2; with one channel the extractor itself is all there is to it.
    """

    source: ClassVar[str] = "the same extractor on every channel of an image"

    def __init__(self, extractor: Extractor, count: int) -> None:
        self._extractor = extractor
        self._count = count
        self.name = extractor.name
        self.channels = count * extractor.channels
        self.multiple = extractor.multiple
        self.min_size = extractor.min_size
        # The results of all channels, and the work on one of them at a time.
        self.tile_bytes = FLOAT + -(-extractor.tile_bytes // count)
        self.fingerprint = f"{extractor.fingerprint}-x{count}"

    @property
    def locality(self) -> int | Literal["global"]:
        """That of one channel."""
        return self._extractor.locality

    @property
    def halo(self) -> int | Literal["global"]:
        """That of one channel."""
        return self._extractor.halo

    def channel_permutation(self, symmetry: AxisSymmetry) -> tuple[int, ...] | None:
        """Within every channel's block of features the same."""
        block = self._extractor.channel_permutation(symmetry)
        if block is None:
            return None
        return tuple(len(block) * channel + place for channel in range(self._count) for place in block)

    def fit(self, image_bmxyz: Tensor, inner: Box = (slice(None),) * 3, /) -> Tensor | None:
        """Statistics of every channel, `[B, M * S]`; None when the extractor needs none."""
        found = [self._extractor.fit(image_b1xyz, inner) for image_b1xyz in image_bmxyz.split(1, dim=1)]
        known = [stats for stats in found if stats is not None]
        return torch.cat(known, dim=1) if known else None

    def __call__(self, image_bmxyz: Tensor, stats: Tensor | None = None, /) -> Tensor:
        """Raw features `[B, M * C, X, Y, Z]`.

        Raises:
            ValueError: The image has another number of channels.
        """
        if image_bmxyz.shape[1] != self._count:
            raise ValueError(f"{self.fingerprint} takes {self._count} channels, got {image_bmxyz.shape[1]}")
        of_channel: Sequence[Tensor | None] = [None] * self._count if stats is None else stats.chunk(self._count, dim=1)
        width, size = self.channels // self._count, image_bmxyz.shape[2:]
        features = torch.empty(len(image_bmxyz), self.channels, *size, device=image_bmxyz.device)
        for channel, own in enumerate(of_channel):
            block = slice(channel * width, (channel + 1) * width)
            features[:, block] = self._extractor(image_bmxyz[:, channel : channel + 1], own)
        return features
