"""Frozen feature extractors: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.features.extractors.anatomix import Anatomix
from dropgen.features.extractors.channels import EachChannel
from dropgen.features.extractors.identity import Identity
from dropgen.features.extractors.mind import Mind
from dropgen.features.extractors.nninteractive import NnInteractive
from dropgen.features.extractors.random_conv import RandomConv
from dropgen.features.extractors.tiles import WORKING_BYTES, Box, Tile, legal_shape, tiles
from dropgen.features.symmetry import AxisSymmetry


class Extractor(Protocol):
    """A frozen map from an image in unit scale to features that are stable across domains.

    A registered one takes one image channel; `EachChannel` runs it on each of several.

    Attributes:
        name: Registry name.
        source: Where it is published.
        channels: Number of feature channels C.
        multiple: Every axis must be divisible by this.
        min_size: Every axis must be at least this.
        tile_bytes: The most memory per voxel and channel while a tile is extracted, beside the output.
        fingerprint: Covers weights, options and code version; keys the store.
    """

    name: str
    source: ClassVar[str]
    channels: int
    multiple: int
    min_size: int
    tile_bytes: int
    fingerprint: str

    @property
    def locality(self) -> int | Literal["global"]:
        """Voxels beyond which the output does not depend on the input, given the statistics of `fit`."""

    @property
    def halo(self) -> int | Literal["global"]:
        """Voxels of context around a tile of a large volume; from `locality` on, tiles equal one pass exactly."""

    def channel_permutation(self, symmetry: AxisSymmetry) -> tuple[int, ...] | None:
        """The P with `F(symmetry(x))[c] == symmetry(F(x))[P[c]]` exactly; None when there is none."""

    def fit(self, image_bmxyz: Tensor, inner: Box = (slice(None),) * 3, /) -> Tensor | None:
        """Statistics `[B, S]` of whole volumes that `__call__` needs; None when it needs none.

        Each is a mean over the voxels of `inner`, the rest being context: the mean over a volume is that of its
        tiles, weighted by their voxels.
        """

    def __call__(self, image_bmxyz: Tensor, stats: Tensor | None = None, /) -> Tensor:
        """Raw features `[B, C, X, Y, Z]`, float32, without gradient."""


EXTRACTORS: dict[str, type[Extractor]] = {
    extractor.name: extractor for extractor in (Mind, Anatomix, NnInteractive, Identity, RandomConv)
}


def options(name: str) -> dict[str, Any]:
    """The options of a registered extractor as an experiment names them, with their defaults."""
    parameters = inspect.signature(EXTRACTORS[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "device"}


def build(component: Component, device: str = "cpu", image_channels: int = 1) -> Extractor:
    """Builds an extractor by name, for images of so many channels.

    Raises:
        ConfigError: Unknown name or option.
        WeightsError: Its weights are missing.
    """
    if component.name not in EXTRACTORS:
        raise ConfigError(f"unknown extractor '{component.name}'{closest(component.name, EXTRACTORS)}")
    known = options(component.name)
    for key in component.options:
        if key not in known:
            hint = closest(key, known) if known else "; it has none"
            raise ConfigError(f"unknown option '{key}' of extractor '{component.name}'{hint}")
    factory: Callable[..., Extractor] = EXTRACTORS[component.name]
    extractor = factory(**component.options, device=device)
    return extractor if image_channels == 1 else EachChannel(extractor, image_channels)


def instance_norm(features_bcxyz: Tensor) -> Tensor:
    """Zero mean, unit variance per sample and channel, in float32; a constant channel becomes 0.

    The first step of a network's input, after cropping, whether features are stored or online.
    """
    with torch.autocast(features_bcxyz.device.type, enabled=False):
        return nnf.instance_norm(features_bcxyz.float(), eps=1e-5)


def extract(
    extractor: Extractor,
    unit_mxyz: np.ndarray,
    device: str = "cpu",
    working_bytes: int = WORKING_BYTES,
    stats: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of one whole volume, tile by tile where one pass would take too much memory.

    The volume is padded by replication up to a legal size and the features are cropped back.

    Args:
        extractor: Any extractor.
        unit_mxyz: `[M, X, Y, Z]`, unit scale, as many channels as the extractor was built for.
        device: Where the extractor was built.
        working_bytes: What a tile may take beside the result; decides where an inexact halo has its seams.
        stats: Those of a larger volume that this one is a part of; its own when None.

    Returns:
        Raw features `[C, X, Y, Z]` float32 and the statistics `[S]`, or None where there are none.
    """
    image, shape = _legal(extractor, unit_mxyz), unit_mxyz.shape[1:]
    plan = tuple(tiles(extractor, shape, working_bytes))
    if stats is None:
        stats = _fit(extractor, image, plan, device)
    features = np.empty((extractor.channels, *shape), np.float32)
    for tile in plan:
        seen = image[(..., *tile.seen)].to(device)
        features[(slice(None), *tile.core)] = extractor(seen, stats)[(0, slice(None), *tile.inner)].cpu().numpy()
    return features, None if stats is None else stats[0].cpu().numpy()


def fit(extractor: Extractor, unit_mxyz: np.ndarray, device: str, working_bytes: int) -> Tensor | None:
    """Statistics `[1, S]` of one whole volume; arguments as for `extract`, which takes them."""
    plan = tuple(tiles(extractor, unit_mxyz.shape[1:], working_bytes))
    return _fit(extractor, _legal(extractor, unit_mxyz), plan, device)


def _legal(extractor: Extractor, unit_mxyz: np.ndarray) -> Tensor:
    """A volume padded by replication up to a legal size, `[1, M, X, Y, Z]`."""
    image, shape = torch.from_numpy(np.ascontiguousarray(unit_mxyz, dtype=np.float32))[None], unit_mxyz.shape[1:]
    sizes = legal_shape(extractor, shape)
    if sizes == shape:
        return image
    padding = [amount for have, want in zip(shape[::-1], sizes[::-1], strict=True) for amount in (0, want - have)]
    return nnf.pad(image, padding, mode="replicate")


def _fit(extractor: Extractor, image_1mxyz: Tensor, plan: Sequence[Tile], device: str) -> Tensor | None:
    """Statistics of a volume from its tiles: float64 sums over all cores, divided by their voxels."""
    total: Tensor | None = None
    count = 0
    for tile in plan:
        mean = extractor.fit(image_1mxyz[(..., *tile.seen)].to(device), tile.inner)
        if mean is None:
            return None
        voxels = math.prod(edge.stop - edge.start for edge in tile.core)
        weighted = mean.double() * voxels
        total, count = weighted if total is None else total + weighted, count + voxels
    assert total is not None
    return (total / count).float()
