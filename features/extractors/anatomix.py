"""anatomix: the paper's frozen 3D UNet (5.9 M parameters) and its larger successor (94 M), from their public files.

Code and weights: github.com/neel-dey/anatomix. The weights are the user's to fetch; none are shipped.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dropgen.errors import ConfigError, WeightsError, closest
from dropgen.features.extractors.locked import Locked
from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry
from dropgen.features.unet import PUBLISHED, Style, UNet

VERSION = 2  # large volumes in tiles since 2
CHANNELS = 16
HALO = 96  # measured with random weights, RMS error 1e-5 at the seam: docs/feature-store.md
VOXEL_NORMS = ("none", "l2", "standardized")


@dataclass(frozen=True)
class Variant:
    """One of the published networks.

    Attributes:
        name: What the option `variant` calls it; its file is `<name>.pth`.
        origin: Where the file is.
        channels: Features, at either tap.
        base: Channels at full resolution.
        downs: Number of downsamplings.
        style: The kinds of its layers.
        penultimate: Index of the first convolution at full resolution in the decoder.
        final: Index of the last convolution.
        tap: The one of the two whose output is taken by default.
        halo: Context of a tile; "global" where instance norms look at the whole input.
        voxel_norm: What its authors do to a voxel's channels.
    """

    name: str
    origin: str
    channels: int
    base: int
    downs: int
    style: Style
    penultimate: int
    final: int
    tap: int
    halo: int | Literal["global"]
    voxel_norm: str

    @property
    def file_name(self) -> str:
        """What its weights are published as."""
        return f"{self.name}.pth"

    @property
    def locality(self) -> int | Literal["global"]:
        """Voxels beyond which an output cannot depend on the input."""
        return "global" if self.halo == "global" else receptive_field(self.downs)

    def network(self) -> UNet:
        """The untrained network."""
        return UNet(1, self.channels, self.base, self.downs, style=self.style)


SMOOTH = Style(norm=partial(nn.InstanceNorm3d, eps=1e-2), bias=True, pool=nn.AvgPool3d, upsample="trilinear")
ANATOMIX = Variant(
    "anatomix", "github.com/neel-dey/anatomix (model-weights/)", CHANNELS, base=16, downs=4, style=PUBLISHED,
    penultimate=59, final=65, tap=59, halo=HALO, voxel_norm="none",
)  # fmt: skip
DEV = Variant(
    "anatomix-dev", "the Hugging Face repository neeldey/anatomix", 32, base=32, downs=5, style=SMOOTH,
    penultimate=73, final=79, tap=79, halo="global", voxel_norm="l2",
)  # fmt: skip
VARIANTS = {variant.name: variant for variant in (ANATOMIX, DEV)}
VIT = "anatomix-dev-vit"


def architecture() -> UNet:
    """The paper's untrained network: 66 modules, one channel to 16, four downsamplings."""
    return ANATOMIX.network()


class Anatomix:
    """Channels of a frozen anatomix UNet, in eval mode permanently: 16 of the paper's, 32 of "anatomix-dev".

    Args:
        weights: Path of the checkpoint; without it `<variant>.pth` is looked for in the folder that the environment
            variable DROPGEN_WEIGHTS names. "anatomix+brains.pth" has the architecture of "anatomix".
        tap: Index of the module whose raw output is taken. "anatomix": 59 (the convolution before the last normalised
            one, the paper's "penultimate" and the default) or 65 (the last); "anatomix-dev": 73 or 79 (the default).
        sha256: Expected hash of the file; compared only when given.
        variant: "anatomix" (4 downsamplings, batch norm) or "anatomix-dev" (5, instance norm, average pooling,
            trilinear upsampling). The features of "anatomix-dev" depend on the whole input: online each crop has its
            own, stored they are the volume's.
        voxel_norm: What is done to the channels of every voxel before anything else: "none", "l2" (unit length) or
            "standardized" (zero mean, unit variance). By default what the authors of the variant ask for: "none" for
            "anatomix", "l2" for "anatomix-dev".
        device: Where the network runs.

    Raises:
        ConfigError: Another tap, variant or norm, or what should be text is not.
        WeightsError: No file, another hash, or not the variant's architecture.
    """

    name = "anatomix"
    tile_bytes = 56  # 45 at 96^3
    source: ClassVar[str] = (
        "Dey et al., Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis, ICLR 2025"
    )

    def __init__(
        self,
        weights: str | None = None,
        tap: int | None = None,
        sha256: str | None = None,
        variant: str = ANATOMIX.name,
        voxel_norm: str | None = None,
        device: str = "cpu",
    ) -> None:
        require_text(self.name, "weights", weights)
        require_text(self.name, "sha256", sha256)
        chosen = _variant(variant)
        self.tap = chosen.tap if tap is None else tap
        if type(self.tap) is not int or self.tap not in (chosen.penultimate, chosen.final):  # 59.0 would be another key
            raise ConfigError(
                f"{variant}: tap = {tap!r} must be {chosen.penultimate} (penultimate) or {chosen.final} (final)"
            )
        self.voxel_norm = chosen.voxel_norm if voxel_norm is None else voxel_norm
        if self.voxel_norm not in VOXEL_NORMS:
            raise ConfigError(f"{variant}: voxel_norm = {voxel_norm!r} must be one of {', '.join(VOXEL_NORMS)}")
        path, found = find_weights(weights, sha256, "features.extractor.weights", chosen)
        normed = "" if self.voxel_norm == "none" else f"-{self.voxel_norm}"
        self.fingerprint = f"{chosen.name}-v{VERSION}-tap{self.tap}{normed}-{found[:16]}"
        network = chosen.network()
        load_weights(network, path, chosen)
        self.channels, self.multiple, self.min_size = chosen.channels, network.divisor, network.min_size
        self.locality, self.halo = chosen.locality, chosen.halo
        self.module = Locked(network).to(device)

    def channel_permutation(self, symmetry: AxisSymmetry) -> None:
        """A trained network has no exact symmetry."""

    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> None:
        """Batch norms in eval mode need nothing of the whole volume; instance norms are shown all of it."""

    @torch.no_grad()
    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw features `[B, channels, X, Y, Z]`; axes divisible by `multiple` and at least `min_size`."""
        return over_channels(self.module(image_b1xyz, tap=self.tap), self.voxel_norm)


def over_channels(features_bcxyz: Tensor, norm: str) -> Tensor:
    """Brings every voxel's channels to unit length ("l2") or to zero mean and unit variance ("standardized")."""
    if norm == "l2":
        return nnf.normalize(features_bcxyz, dim=1)
    if norm == "standardized":
        variance, mean = torch.var_mean(features_bcxyz, dim=1, correction=0, keepdim=True)
        return (features_bcxyz - mean) / torch.sqrt(variance + 1e-5)
    return features_bcxyz


def _variant(name: str) -> Variant:
    if name == VIT:
        raise ConfigError(
            f"anatomix: variant '{VIT}' takes inputs of exactly 128 x 128 x 128 voxels, and features are extracted here"
            f" from crops and volumes of any size; choose {' or '.join(VARIANTS)}"
        )
    if str(name) not in VARIANTS:
        raise ConfigError(f"anatomix: variant = {name!r} is unknown{closest(str(name), VARIANTS)}")
    return VARIANTS[name]


def receptive_field(downs: int, convs: int = 2) -> int:
    """Voxels to one side that an output of the UNet family can depend on."""
    reach = 1
    for level in range(downs + 1):
        reach += (convs + (2 if level < downs else 0)) * (1 << level) + (1 << level if level else 0)
    return reach + (1 << downs)


def require_text(name: str, option: str, value: object) -> None:
    """Checks an option that is text or left out.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, str | None):
        raise ConfigError(f"{name}: {option} = {value!r} must be text")


def find_weights(weights: str | None, sha256: str | None, option: str, variant: Variant = ANATOMIX) -> tuple[Path, str]:
    """Finds a checkpoint, at the path that is given or in the folder that DROPGEN_WEIGHTS names.

    Args:
        weights: The path, or None.
        sha256: Expected hash; compared only when given.
        option: What the path is called in an experiment, for the error's remedy.
        variant: Whose checkpoint.

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
        path = Path(folder).expanduser() / variant.file_name
        remedy = "put the file there"
    else:
        path = Path(variant.file_name)
        remedy = f"set DROPGEN_WEIGHTS to the folder that holds it, or {option} to the file"
    if not (weights or folder) or not path.is_file():
        raise WeightsError(
            f"{variant.name} weights not found at '{path}': download {variant.file_name} from {variant.origin} "
            f"and {remedy}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(f"{path} has sha256 {found}, but the configuration names {sha256}")
    return path, found


def load_weights(network: UNet, path: Path, variant: Variant = ANATOMIX) -> None:
    """Loads the file into the variant's network, every entry or none.

    Raises:
        WeightsError: It is not the variant's checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in state.items()}, strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path} is not the {variant.name} checkpoint ({len(network.state_dict())} entries, 1 to "
            f"{variant.channels} channels): {reason}"
        ) from error
