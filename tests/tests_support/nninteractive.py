"""A model folder laid out as nnInteractive's is, around a network of two stages that nobody trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dropgen.features.extractors.nninteractive import (
    CHECKPOINT,
    CONFIGURATION,
    DATASET,
    FOLDER,
    build_network,
    read_plans,
)

ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 2]], "n_blocks_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip


def require_package() -> None:
    """Skips the test that calls it where the extra is not installed."""
    pytest.importorskip("dynamic_network_architectures", reason="needs the extra dropgen[nninteractive]")


def write_plans(weights: Path, dataset: str = DATASET, channels: int = 1, **arguments: Any) -> Path:
    """The two JSON files, with `arguments` in place of the network's own; returns the model folder in `weights`."""
    folder = weights / FOLDER
    (folder / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    architecture = {**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], **arguments}}
    configurations = {
        "3d_fullres": {"architecture": architecture},
        CONFIGURATION: {"inherits_from": "3d_fullres", "patch_size": [192, 192, 192]},
    }
    (folder / "plans.json").write_text(json.dumps({"dataset_name": dataset, "configurations": configurations}))
    names = {str(index): f"image {index}" for index in range(channels)}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": names}))
    return folder


def write_model(weights: Path) -> Path:
    """The whole folder, in `weights`; needs the package that holds the network."""
    folder = write_plans(weights)
    torch.manual_seed(0)
    state = build_network(read_plans(folder)).state_dict()
    torch.save({"network_weights": state, "init_args": {"configuration": CONFIGURATION}}, folder / CHECKPOINT)
    return folder
