"""MIND-SSC: a self-similarity descriptor without weights, invariant to a*x + b for any a != 0.

Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
self-similarities", MICCAI 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.errors import ConfigError
from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry

VERSION = 2  # every channel is smoothed by itself since 2, which rounds otherwise (5e-6)
SIGMA = 1.0
NEIGHBOURS = ((-1, 0, 0), (0, 0, -1), (0, -1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0))
# Pairs of neighbours whose squared distance is 2; the three opposite pairs have 4 and are left out.
PAIRS = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 2), (4, 1), (4, 2), (4, 3), (5, 0), (5, 1), (5, 3), (5, 4))


class Mind:
    """Twelve channels per dilation, values in (0, 1], the largest exactly 1 at every voxel.

    Channel c compares the neighbours i and j of pair c: the squared difference of the image there,
    Gaussian-smoothed, minus its minimum over the channels of the dilation, divided by the local mean
    v over them, through exp(-.). v is clamped to [0.001, 1000] times its mean over the volume: that
    mean, one number per dilation, is what `fit` returns.

    Args:
        dilations: Distances of the neighbours in voxels.
        device: Where the smoothing kernel lives.

    Raises:
        ConfigError: `dilations` is no list of distances.
    """

    name = "mind"
    multiple = 1
    min_size = 1
    tile_bytes = 24  # 10 to 15 were seen from 128^3 down to 64^3
    source: ClassVar[str] = (
        "Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities, "
        "MICCAI 2013"
    )

    def __init__(self, dilations: Sequence[int] = (1,), device: str = "cpu") -> None:
        if not _are_dilations(dilations):
            raise ConfigError(
                f"mind: dilations = {dilations!r} must be a list of different whole numbers of voxels, each at least 1"
            )
        self.dilations = tuple(dilations)
        self.channels = len(PAIRS) * len(self.dilations)
        self._half_width = math.ceil(1.5 * SIGMA)
        self.locality = self.halo = max(self.dilations) + self._half_width
        self.fingerprint = f"mind-v{VERSION}-sigma{SIGMA}-dilations{','.join(map(str, self.dilations))}"
        taps = torch.arange(-self._half_width, self._half_width + 1, dtype=torch.float64)
        kernel = torch.exp(-taps.square() / (2 * SIGMA**2))
        self._kernel = (kernel / kernel.sum()).to(device)

    def channel_permutation(self, symmetry: AxisSymmetry) -> tuple[int, ...]:
        """MIND is exactly equivariant: a flip or a quarter turn only permutes its channels."""
        # Channel c of F(symmetry(x)) looks at offsets PAIRS[c] in the result; the channel of F(x)
        # that holds the same value is the one whose own offsets the symmetry carries there.
        carried = [NEIGHBOURS.index(symmetry.of_offset(offset)) for offset in NEIGHBOURS]
        source = {frozenset((carried[i], carried[j])): channel for channel, (i, j) in enumerate(PAIRS)}
        one = [source[frozenset(pair)] for pair in PAIRS]
        return tuple(block * len(PAIRS) + channel for block in range(len(self.dilations)) for channel in one)

    @torch.no_grad()
    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> Tensor:
        """Mean of the local variation over each volume's voxels in `inner`, `[B, dilations]`."""
        variations = [self._distances(image_b1xyz, dilation)[1] for dilation in self.dilations]
        return torch.stack([variation[(..., *inner)].mean(dim=(1, 2, 3, 4)) for variation in variations], dim=1)

    @torch.no_grad()
    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw descriptor `[B, 12 * dilations, X, Y, Z]`; without `stats` the input is its own volume."""
        if image_b1xyz.shape[1] != 1:
            raise ValueError(f"MIND takes one channel, got {image_b1xyz.shape[1]}")
        blocks = []
        for index, dilation in enumerate(self.dilations):
            distance, variation = self._distances(image_b1xyz, dilation)
            mean = variation.mean(dim=(1, 2, 3, 4)) if stats is None else stats[:, index].to(variation)
            mean = mean.view(-1, 1, 1, 1, 1)
            variation = torch.clamp(variation, 0.001 * mean, 1000 * mean).clamp_min(1e-12)
            blocks.append(torch.exp(-distance / variation))
        return torch.cat(blocks, dim=1)

    def _distances(self, image_b1xyz: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
        """Patch distances above their minimum `[B, 12, ...]` and their mean over channels `[B, 1, ...]`."""
        with torch.autocast(image_b1xyz.device.type, enabled=False):
            image = image_b1xyz if image_b1xyz.dtype == torch.float64 else image_b1xyz.float()
            padded = nnf.pad(image, [dilation] * 6, mode="replicate")
            size = image.shape[2:]
            shifted = []
            for offset in NEIGHBOURS:
                starts = [dilation * (1 + step) for step in offset]
                box = [slice(start, start + length) for start, length in zip(starts, size, strict=True)]
                shifted.append(padded[:, :, box[0], box[1], box[2]])
            # One by one: oneDNN lays a convolution of one channel out for sixteen. All at once took five times as long
            # and 84 bytes per voxel and channel instead of 18.
            distance = image.new_empty(len(image), len(PAIRS), *size)
            for channel, (i, j) in enumerate(PAIRS):
                distance[:, channel] = self._smooth((shifted[i] - shifted[j]).square())[:, 0]
            distance -= distance.amin(dim=1, keepdim=True)
            return distance, distance.mean(dim=1, keepdim=True)

    def _smooth(self, x_b1xyz: Tensor) -> Tensor:
        kernel = self._kernel.to(x_b1xyz)
        for axis in range(3):
            shape = [1, 1, 1, 1, 1]
            shape[2 + axis] = len(kernel)
            padding = [0] * 6
            padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = self._half_width
            x_b1xyz = nnf.conv3d(nnf.pad(x_b1xyz, padding, mode="replicate"), kernel.view(shape))
        return x_b1xyz


def _are_dilations(values: object) -> bool:
    """Whether a YAML file, which may hold anything, holds distances."""
    if not isinstance(values, list | tuple) or not values:
        return False
    return all(type(value) is int and value >= 1 for value in values) and len(set(values)) == len(values)
