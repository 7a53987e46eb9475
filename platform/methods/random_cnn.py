"""A fresh random CNN as an intensity map: GIN's transformation of one image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.linalg import vector_norm

HIDDEN, LAYERS = 2, 4
KERNEL_SIZES = (1, 3)
SLOPE = 0.01


def random_intensities(image_cxyz: Tensor, generator: np.random.Generator) -> Tensor:
    """One image on its way to what a random network g makes of it: `interpolate` with alpha ~ U(0, 1).

    The norm stays, but values may leave [0, 1].

    Args:
        image_cxyz: `[C, X, Y, Z]`, float32.
        generator: Draws g and alpha.
    """
    return interpolate(image_cxyz, random_cnn(image_cxyz, generator), generator.random())


def random_cnn(
    image_cxyz: Tensor, generator: np.random.Generator, kernel_sizes: tuple[int, ...] = KERNEL_SIZES
) -> Tensor:
    """The image through four random convolutions, C -> 2 -> 2 -> 2 -> C channels, of the same size.

    Every weight and every channel's shift is a draw of N(0, 1), every layer's kernel size a uniform draw of
    `kernel_sizes`; zero padding, leaky ReLU of slope 0.01 between the layers. Ouyang et al. 2022 draw the
    kernel sizes once for a batch; here each image draws its own, so that how workers share a batch changes nothing.
    """
    widths = [image_cxyz.shape[0], *[HIDDEN] * (LAYERS - 1), image_cxyz.shape[0]]
    x_1cxyz = image_cxyz[None]
    # Autocast would leave steps in the image: bfloat16 has 8 bits of precision.
    with torch.autocast(image_cxyz.device.type, enabled=False):
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            size = int(generator.choice(kernel_sizes))
            weight, shift = (
                torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(image_cxyz.device)
                for shape in ((outputs, inputs, size, size, size), (outputs,))
            )
            if layer > 0:
                x_1cxyz = nnf.leaky_relu(x_1cxyz, SLOPE)
            x_1cxyz = nnf.conv3d(x_1cxyz, weight, shift, padding=size // 2)
    return x_1cxyz[0]


def interpolate(image_cxyz: Tensor, changed_cxyz: Tensor, alpha: float) -> Tensor:
    """m * ||x|| / (||m|| + 1e-5) with m = alpha * g(x) + (1 - alpha) * x, Frobenius norms over channels and voxels."""
    mixed_cxyz = alpha * changed_cxyz + (1 - alpha) * image_cxyz
    scale: Tensor = vector_norm(image_cxyz) / (vector_norm(mixed_cxyz) + 1e-5)
    return mixed_cxyz * scale
