"""Features in one byte each: 256 levels between the smallest and the largest value of every channel.

Plain levels from end to end, after measuring clipped percentiles and companding on MIND: nothing else was
better on average, and this is an affine map, which any Zarr reader can undo (docs/feature-store.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEVELS = 255


def encode(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Codes of one channel of one volume.

    Args:
        values: Finite, any shape.

    Returns:
        int8 codes, scale and offset: `codes * scale + offset` is at most `scale / 2` from `values`. A constant
        channel has scale 0 and comes back exactly.
    """
    low, high = float(values.min()), float(values.max())
    scale = (high - low) / LEVELS
    levels = np.rint((values - np.float64(low)) / (scale or 1.0))
    return (levels - 128).astype(np.int8), scale, low + 128 * scale


def decode(codes_cxyz: Tensor, affine_2c: np.ndarray) -> Tensor:
    """Float32 values of int8 codes, on the device where the codes are.

    The instance norm that follows would cancel offset and scale alike, but for its eps = 1e-5, which is relative to
    the variance of raw values. The step of a MIND channel is 1/255, so a crop with raw variance 1e-6 has a variance of
    0.07 in codes: normed from codes it comes out with standard deviation 1, from raw values with 0.3.

    Args:
        codes_cxyz: `[C, X, Y, Z]` int8.
        affine_2c: Scale and offset of these channels, `[2, C]` float32.
    """
    scale, offset = torch.from_numpy(affine_2c).to(codes_cxyz.device)[..., None, None, None]
    return torch.addcmul(offset, codes_cxyz.float(), scale)
