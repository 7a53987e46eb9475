"""anatomix: the paper's frozen 3D UNet (5.9 M parameters), loaded from the public anatomix.pth.

Code and weights: github.com/neel-dey/anatomix. The weights are the user's to fetch; none are shipped.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry
from dropgen.features.unet import UNet

VERSION = 2  # large volumes in tiles since 2
FILE_NAME = "anatomix.pth"
CHANNELS = 16
PENULTIMATE, FINAL = 59, 65
HALO = 96  # measured with random weights, RMS error 1e-5 at the seam: docs/feature-store.md


def architecture() -> UNet:
    """The untrained network: 66 modules, one channel to 16, four downsamplings."""
    return UNet(1, CHANNELS, base=16, downs=4)


class _Locked(nn.Module):
    """A network that stays in eval mode for good, whatever a parent module switches to."""

    def __init__(self) -> None:
        super().__init__()
        self.network = architecture()
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> _Locked:
        """Ignores `mode`: batch statistics must never enter the frozen features."""
        return super().train(False)

    def forward(self, image_b1xyz: Tensor, tap: int) -> Tensor:
        """Raw output of module `tap`."""
        output: Tensor = self.network(image_b1xyz, tap=tap)
        return output


class Anatomix:
    """Sixteen channels of the frozen anatomix UNet, in eval mode permanently.

    Args:
        weights: Path of anatomix.pth; without it the file is looked for in the folder that the
            environment variable DROPGEN_WEIGHTS names.
        tap: Index of the module whose raw output is taken: 59 (the convolution before the last
            normalised one, the paper's "penultimate") or 65 (the last).
        sha256: Expected hash of the file; compared only when given.
        device: Where the network runs.

    Raises:
        ConfigError: Another tap.
        WeightsError: No file, another hash, or not the anatomix architecture.
    """

    name = "anatomix"
    channels = CHANNELS
    multiple = 16
    min_size = 32
    source = (
        "Dey et al., Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis, ICLR 2025"
    )
    halo = HALO

    def __init__(
        self, weights: str | None = None, tap: int = PENULTIMATE, sha256: str | None = None, device: str = "cpu"
    ) -> None:
        if tap not in (PENULTIMATE, FINAL):
            raise ConfigError(f"anatomix: tap = {tap!r} must be {PENULTIMATE} (penultimate) or {FINAL} (final)")
        path, found = find_weights(weights, sha256, "features.extractor.weights")
        self.tap = tap
        self.locality = receptive_field(downs=4)
        self.fingerprint = f"anatomix-v{VERSION}-tap{tap}-{found[:16]}"
        self.module = _Locked()
        load_weights(self.module.network, path)
        self.module.to(device)

    def channel_permutation(self, symmetry: AxisSymmetry) -> None:
        """A trained network has no exact symmetry."""

    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> None:
        """Eval-mode batch normalisation needs nothing of the whole volume."""

    @torch.no_grad()
    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw features `[B, 16, X, Y, Z]`; axes divisible by 16 and at least 32."""
        with torch.autocast(image_b1xyz.device.type, enabled=False):
            features: Tensor = self.module(image_b1xyz.float(), self.tap)
            return features


def receptive_field(downs: int, convs: int = 2) -> int:
    """Voxels to one side that an output of the UNet family can depend on."""
    reach = 1
    for level in range(downs + 1):
        reach += (convs + (2 if level < downs else 0)) * (1 << level) + (1 << level if level else 0)
    return reach + (1 << downs)


def find_weights(weights: str | None, sha256: str | None, option: str) -> tuple[Path, str]:
    """Finds anatomix.pth, at the path that is given or in the folder that DROPGEN_WEIGHTS names.

    Args:
        weights: The path, or None.
        sha256: Expected hash; compared only when given.
        option: What the path is called in an experiment, for the error's remedy.

    Returns:
        The file and its sha256.

    Raises:
        WeightsError: There is no file, or it has another hash.
    """
    folder = os.environ.get("DROPGEN_WEIGHTS")
    if weights:
        path = Path(weights).expanduser()
        remedy = f"correct {option}"
    elif folder:
        path = Path(folder).expanduser() / FILE_NAME
        remedy = "put the file there"
    else:
        path = Path(FILE_NAME)
        remedy = f"set DROPGEN_WEIGHTS to the folder that holds it, or {option} to the file"
    if not (weights or folder) or not path.is_file():
        raise WeightsError(
            f"anatomix weights not found at '{path}': download anatomix.pth from github.com/neel-dey/anatomix "
            f"(model-weights/) and {remedy}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(f"{path} has sha256 {found}, but the configuration names {sha256}")
    return path, found


def load_weights(network: UNet, path: Path) -> None:
    """Loads the file into `architecture()`, every entry or none.

    Raises:
        WeightsError: It is not the anatomix checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in state.items()}, strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path} is not the anatomix checkpoint (115 entries, 1 to 16 channels): {reason}"
        ) from error
