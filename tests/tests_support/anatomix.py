"""Checkpoints of anatomix that nobody trained, and a volume with something in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from dropgen.features.unet import UNet
from tests_support.formulas import set_formula_weights

CHANNELS = 16


def weights(folder: Path, kind: str) -> Path:
    """An anatomix checkpoint that nobody trained.

    "formula": the weights of the golden values, whose deep levels say little. "random": PyTorch's initialisation
    with batch statistics that fit, as training leaves them, so that every level speaks with the same voice.
    """
    torch.manual_seed(0)
    network = UNet(1, CHANNELS, base=16, downs=4)
    if kind == "formula":
        set_formula_weights(network)
    else:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        with torch.no_grad():
            network(torch.from_numpy(textured((96, 32, 32)))[None, None])
    torch.save(network.state_dict(), folder / f"{kind}.pth")
    return folder / f"{kind}.pth"


def textured(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth blobs with 2% of noise, in unit scale."""
    generator = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(generator.normal(size=shape), 3)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    return np.clip(blobs + 0.02 * generator.normal(size=shape), 0, 1).astype(np.float32)
