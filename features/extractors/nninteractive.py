"""nnInteractive v1.0 without prompts: features of its last decoder stage, from the checkpoint that the user supplies.

Isensee et al., "nnInteractive: Redefining 3D Promptable Segmentation", 2025. The checkpoint is licensed CC BY-NC-SA 4.0
and is not shipped. It is a pickle, which can run code, so it is loaded only from the folder that the environment
variable DROPGEN_WEIGHTS names: never from a path in an experiment or a bundle, which others may have written.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.console import warn
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors.locked import Locked
from dropgen.features.extractors.tiles import Box
from dropgen.features.symmetry import AxisSymmetry

VERSION = 1
FOLDER = "nnInteractive_v1.0"
CHECKPOINT = "fold_0/checkpoint_final.pth"
DATASET, CONFIGURATION = "Dataset225_nnInteractiveV2", "3d_fullres_ps192_bs24"
PROMPTS = 7  # previous segmentation; bounding box or lasso, point, scribble: each once for more and once for less
NORMS = ("zscore", "none")


class NnInteractive:
    """What the last segmentation layer of nnInteractive reads, with all prompt channels zero.

    Number of channels, legal sizes and everything else of the network come from the checkpoint's own plans. Its
    instance norms look at the whole input: online each crop has its own features, stored they are the volume's,
    extracted in one pass.

    Args:
        normalisation: "zscore": the network sees (x - mean) / std over the bounding box of what is not zero, as in its
            training. "none": it sees unit scale.
        device: Where the network runs.

    Raises:
        ConfigError: Another normalisation, or the package dynamic-network-architectures is missing.
        WeightsError: A file is missing or is not of nnInteractive v1.0.
    """

    name = "nninteractive"
    tile_bytes = 56  # as anatomix; not measured
    source: ClassVar[str] = "Isensee et al., nnInteractive: Redefining 3D Promptable Segmentation, 2025"
    locality: Literal["global"] = "global"
    halo: Literal["global"] = "global"

    def __init__(self, normalisation: str = "zscore", device: str = "cpu") -> None:
        if normalisation not in NORMS:
            raise ConfigError(f"nninteractive: normalisation = {normalisation!r} must be one of {', '.join(NORMS)}")
        self.normalisation = normalisation
        folder = find_folder()
        plans = read_plans(folder)
        network = build_network(plans)
        load_weights(network, folder / CHECKPOINT)
        last = network.decoder.seg_layers[-1]
        self.channels: int = last.in_channels
        self.multiple = plans.multiple
        self.min_size = 2 * self.multiple  # an instance norm wants more than one voxel at the deepest level
        network.decoder.seg_layers[-1] = nn.Identity()
        self.module = Locked(network).to(device)
        self.fingerprint = f"nninteractive-v{VERSION}-{normalisation}-{_digest(folder)[:16]}"
        _warn_of_licence()

    def channel_permutation(self, symmetry: AxisSymmetry) -> None:
        """A trained network has no exact symmetry."""

    def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> None:
        """Needs nothing beside the input, which is all of the volume."""

    @torch.no_grad()
    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        """Raw features `[B, channels, X, Y, Z]`; axes divisible by `multiple` and at least `min_size`."""
        image = image_b1xyz.float()
        if self.normalisation == "zscore":
            image = torch.stack([z_score(volume_1xyz) for volume_1xyz in image])
        prompts = image.new_zeros(len(image), PROMPTS, *image.shape[2:])
        features: Tensor = self.module(torch.cat((image, prompts), dim=1))
        return features


def z_score(volume_1xyz: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over the bounding box of what is not zero, applied everywhere."""
    box = [slice(None)]
    for others in ((0, 2, 3), (0, 1, 3), (0, 1, 2)):
        filled = (volume_1xyz != 0).any(dim=others).nonzero()
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(None))
    region = volume_1xyz[tuple(box)]
    return (volume_1xyz - region.mean()) / region.std(correction=0).clamp_min(1e-8)


def find_folder() -> Path:
    """The model folder, complete.

    Raises:
        WeightsError: DROPGEN_WEIGHTS is not set, or a file is missing.
    """
    weights = os.environ.get("DROPGEN_WEIGHTS")
    files = ("plans.json", "dataset.json", CHECKPOINT)
    folder = Path(weights or "").expanduser() / FOLDER
    missing = [name for name in files if not (folder / name).is_file()]
    if not weights or missing:
        lacks = f"'{folder}' lacks {', '.join(missing)}" if weights else "DROPGEN_WEIGHTS is not set"
        raise WeightsError(
            f"nninteractive needs the model folder {FOLDER} with {', '.join(files)}, but {lacks}: download it from the "
            "Hugging Face repository nnInteractive/nnInteractive and put it into the folder that DROPGEN_WEIGHTS names"
        )
    return folder


@dataclass(frozen=True)
class Plans:
    """What nnU-Net's plans say of a network.

    Attributes:
        network: Its class.
        arguments: What it is built with.
        classes: The arguments that are names of classes.
    """

    network: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]

    @property
    def multiple(self) -> int:
        """By what every axis must be divisible: the strides of all stages, multiplied."""
        per_axis = np.prod([np.broadcast_to(stride, 3) for stride in self.arguments["strides"]], axis=0)
        return math.lcm(*per_axis.tolist())


def read_plans(folder: Path) -> Plans:
    """The network that the model folder describes.

    Raises:
        WeightsError: The files are damaged or belong to another model.
    """
    try:
        plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
        name, images = plans["dataset_name"], len(dataset["channel_names"])
        if (name, images) != (DATASET, 1):
            raise ValueError(f"a model of {name} with {images} image channels")
        architecture = _configuration(plans["configurations"], CONFIGURATION)["architecture"]
        return Plans(
            architecture["network_class_name"],
            dict(architecture["arch_kwargs"]),
            tuple(architecture["_kw_requires_import"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"plans.json and dataset.json in '{folder}' are not those of {FOLDER} ({DATASET}, one image channel, "
            f"configuration {CONFIGURATION}): {type(error).__name__} {error}; copy them again"
        ) from error


def build_network(plans: Plans) -> Any:
    """The untrained network: image and prompts in, two classes out.

    Raises:
        ConfigError: The package that holds its class is missing.
        WeightsError: The plans describe no residual-encoder UNet.
    """
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    except ImportError:
        raise ConfigError(
            "extractor nninteractive needs the package dynamic-network-architectures, which is not installed: run "
            "pip install -e '.[nninteractive]' in the checkout, or choose another features.extractor"
        ) from None
    if plans.network.rpartition(".")[2] != ResidualEncoderUNet.__name__:
        raise WeightsError(f"the plans of {FOLDER} name the network {plans.network}, not a residual-encoder UNet")
    own = {"input_channels": 1 + PROMPTS, "num_classes": 2, "deep_supervision": False}
    located = {key: _torch_class(plans.arguments[key]) for key in plans.classes}
    try:
        return ResidualEncoderUNet(**{**plans.arguments, **located, **own})
    except (TypeError, AssertionError) as error:
        raise WeightsError(f"the plans of {FOLDER} do not fit a residual-encoder UNet: {error}") from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads the checkpoint, every entry or none.

    Raises:
        WeightsError: It does not fit the plans, or is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
        network.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in state.items()}, strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path} is not the checkpoint that its plans describe: {reason}") from error


def _configuration(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of nnU-Net's plans with what it inherits."""
    own: dict[str, Any] = configurations[name]
    return _configuration(configurations, own["inherits_from"]) | own if "inherits_from" in own else own


def _torch_class(name: str | None) -> Any:
    if name is None:
        return None
    module, _, attribute = name.rpartition(".")
    if not f"{module}.".startswith("torch.nn."):
        raise WeightsError(f"the plans of {FOLDER} name the layer {name}, which is none of torch.nn")
    return getattr(importlib.import_module(module), attribute)


def _digest(folder: Path) -> str:
    """Over weights and plans: padding, norms and activations are in no weight."""
    hasher = hashlib.sha256((folder / "plans.json").read_bytes())
    with (folder / CHECKPOINT).open("rb") as file:
        hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()


@functools.cache
def _warn_of_licence() -> None:
    """Once per process, however often the extractor is built."""
    warn(
        "the nnInteractive checkpoint is licensed CC BY-NC-SA 4.0: no commercial use, and what is adapted from it is "
        "shared alike; that may include models trained on its features"
    )
