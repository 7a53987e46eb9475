"""How far features that were moved are from features of the moved image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dropgen.features.extractors import instance_norm
from dropgen.platform.evaluation.analyses.cka import linear_cka


class Difference(NamedTuple):
    """Between two feature maps after the instance norm; errors are in standard deviations of a normed channel.

    Attributes:
        cka: Linear CKA; 1 is no difference. NaN without voxels, or where one map is constant.
        mean_error: Mean absolute difference over voxels and channels.
        max_error: The largest.
        voxels: How many were compared.
    """

    cka: float
    mean_error: float
    max_error: float
    voxels: int


def difference(one_cxyz: Tensor, other_cxyz: Tensor, inside_xyz: Tensor) -> Difference:
    """Compares two raw feature maps where `inside_xyz` is true, each normed over these voxels.

    Args:
        one_cxyz: `[C, X, Y, Z]`.
        other_cxyz: The same shape.
        inside_xyz: `[X, Y, Z]`, bool.
    """
    voxels = int(inside_xyz.sum())
    if voxels < 2:
        return Difference(math.nan, math.nan, math.nan, voxels)
    one, other = (instance_norm(part[:, inside_xyz][None, :, :, None, None])[0, :, :, 0, 0].T
                  for part in (one_cxyz, other_cxyz))  # fmt: skip
    error = (one - other).abs()
    return Difference(linear_cka(one, other), float(error.mean()), float(error.max()), voxels)


def interior(shape: Sequence[int], margin: Sequence[int], affine: np.ndarray | None = None) -> Tensor:
    """Voxels `[X, Y, Z]` that lie `margin` voxels or more within a crop, before and after an affine map of it.

    Args:
        shape: Voxels of the crop.
        margin: Voxels, one number per axis.
        affine: 3x3 map from output to input directions about the crop's centre; None for none.
    """
    centre = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    places_xyz3 = torch.stack(
        torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in shape), indexing="ij"), dim=-1
    ) - centre  # fmt: skip
    reach = centre - torch.tensor(margin, dtype=torch.float64)
    inside = (places_xyz3.abs() <= reach).all(dim=-1)
    if affine is not None:
        inside &= ((places_xyz3 @ torch.from_numpy(affine).double().T).abs() <= reach).all(dim=-1)
    return inside
