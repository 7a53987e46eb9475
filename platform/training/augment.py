"""Replays a planned sample: the geometry on image, label and features; the noise on the image only."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as nnf
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSharpen,
    RandGaussianSmooth,
    RandGibbsNoise,
    RandSimulateLowResolution,
)
from torch import Tensor

set_track_meta(False)


@functools.cache
def _intensity_transforms(probability: float) -> Compose:
    """METHODS of the paper's released pipeline, in its order and with its ranges.

    RandGaussianSmooth keeps the published sigma of at most 0.1 voxel, which is numerically the
    identity (centre weight above 0.999999).
    """
    return Compose([
        RandSimulateLowResolution(prob=probability, zoom_range=(0.25, 1.0)),
        RandGaussianNoise(prob=probability, mean=0.0, std=0.1),
        RandBiasField(prob=probability, degree=3, coeff_range=(0.0, 0.1)),
        RandGibbsNoise(prob=probability, alpha=(0.0, 0.33)),
        RandAdjustContrast(prob=probability, gamma=(0.5, 4.5)),
        RandGaussianSmooth(prob=probability, sigma_x=(0.0, 0.1), sigma_y=(0.0, 0.1), sigma_z=(0.0, 0.1)),
        RandGaussianSharpen(
            prob=probability, sigma1_x=(0.5, 1.0), sigma1_y=(0.5, 1.0), sigma1_z=(0.5, 1.0),
            sigma2_x=0.5, sigma2_y=0.5, sigma2_z=0.5, alpha=(10.0, 30.0),
        ),
    ])  # fmt: skip


def add_noise(unit_mxyz: Tensor, noise_seed: int, probability: float) -> Tensor:
    """Random intensity changes of one crop `[M, X, Y, Z]`, clamped to the unit scale [0, 1].

    Every channel is changed by draws of its own, as an image of its own would be; nnU-Net also changes contrast, gamma,
    blur and resolution channel by channel.
    """
    transforms, changed = _intensity_transforms(probability), torch.empty_like(unit_mxyz)
    others = np.random.default_rng(noise_seed).integers(2**32, size=len(unit_mxyz) - 1)
    for channel, seed in enumerate((noise_seed, *map(int, others))):
        transforms.set_random_state(seed=seed)
        made = transforms(unit_mxyz[channel : channel + 1].clone())
        changed[channel : channel + 1] = torch.as_tensor(made, dtype=torch.float32).clamp(0, 1)
    return changed


def warp(crop_cxyz: Tensor, affine: np.ndarray, outside: Tensor, mode: str = "bilinear") -> Tensor:
    """Resamples a crop under an affine map about its centre.

    Args:
        crop_cxyz: `[C, X, Y, Z]`.
        affine: 3x3 map from output to input directions, in voxels.
        outside: `[C]`, the value of each channel beyond the crop.
        mode: "bilinear" (trilinear in 3D) or "nearest".
    """
    shape = torch.tensor(crop_cxyz.shape[1:], dtype=torch.float64)
    # grid_sample counts axes from the last and scales each to [-1, 1].
    matrix = torch.from_numpy(affine) * (shape[None, :] / shape[:, None])
    theta = torch.cat((torch.flip(matrix, (0, 1)), torch.zeros(3, 1)), dim=1).to(crop_cxyz.device, torch.float32)
    grid = nnf.affine_grid(theta[None], [1, *crop_cxyz.shape], align_corners=False)
    shift = outside.view(-1, 1, 1, 1).to(torch.float32)
    moved = nnf.grid_sample(
        (crop_cxyz.float() - shift)[None], grid, mode=mode, padding_mode="zeros", align_corners=False
    )
    return moved[0] + shift
