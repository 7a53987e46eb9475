"""Frozen feature extractors: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.features.extractors.anatomix import Anatomix
from dropgen.features.extractors.mind import Mind
from dropgen.features.symmetry import AxisSymmetry


class Extractor(Protocol):
    """A frozen map from an image in unit scale to features that are stable across domains.

    Attributes:
        name: Registry name.
        channels: Number of feature channels C.
        multiple: Every axis must be divisible by this.
        min_size: Every axis must be at least this.
        fingerprint: Covers weights, options and code version; keys the store.
    """

    name: str
    channels: int
    multiple: int
    min_size: int
    fingerprint: str

    @property
    def locality(self) -> int | Literal["global"]:
        """Voxels beyond which the output does not depend on the input, given the statistics of `fit`."""

    def channel_permutation(self, symmetry: AxisSymmetry) -> tuple[int, ...] | None:
        """The P with `F(symmetry(x))[c] == symmetry(F(x))[P[c]]` exactly; None when there is none."""

    def fit(self, image_b1xyz: Tensor) -> Tensor | None:
        """Statistics `[B, S]` of whole volumes that `__call__` needs; None when it needs none."""

    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw features `[B, C, X, Y, Z]`, float32, without gradient."""


EXTRACTORS: dict[str, Callable[..., Extractor]] = {"mind": Mind, "anatomix": Anatomix}


def build(component: Component, device: str = "cpu") -> Extractor:
    """Builds an extractor by name.

    Raises:
        ConfigError: Unknown name or option.
        WeightsError: Its weights are missing.
    """
    if component.name not in EXTRACTORS:
        raise ConfigError(f"unknown extractor '{component.name}'{closest(component.name, EXTRACTORS)}")
    factory = EXTRACTORS[component.name]
    options: dict[str, Any] = component.options
    known = [name for name in factory.__init__.__annotations__ if name not in ("return", "device")]
    for key in options:
        if key not in known:
            raise ConfigError(f"unknown option '{key}' of extractor '{component.name}'{closest(key, known)}")
    return factory(**options, device=device)


def instance_norm(features_bcxyz: Tensor) -> Tensor:
    """Zero mean, unit variance per sample and channel, in float32; a constant channel becomes 0.

    The first step of a network's input, after cropping, whether features are stored or online.
    """
    with torch.autocast(features_bcxyz.device.type, enabled=False):
        return nnf.instance_norm(features_bcxyz.float(), eps=1e-5)


def extract(extractor: Extractor, unit: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray | None]:
    """Features of one whole volume.

    The volume is padded by replication up to a legal size and the features are cropped back.

    Args:
        extractor: Any extractor.
        unit: `[X, Y, Z]`, unit scale.
        device: Where the extractor was built.

    Returns:
        Raw features `[C, X, Y, Z]` float32 and the statistics `[S]`, or None where there are none.
    """
    image = torch.from_numpy(np.ascontiguousarray(unit, dtype=np.float32))[None, None].to(device)
    stats = extractor.fit(image)
    sizes = [max(-(-size // extractor.multiple) * extractor.multiple, extractor.min_size) for size in unit.shape]
    padding = [amount for have, want in zip(unit.shape[::-1], sizes[::-1], strict=True) for amount in (0, want - have)]
    features = extractor(nnf.pad(image, padding, mode="replicate"), stats)
    x, y, z = unit.shape
    return features[0, :, :x, :y, :z].cpu().numpy(), None if stats is None else stats[0].cpu().numpy()
