"""A bundle: a folder with `segmenter.json`, everything needed to predict, and `weights.safetensors`.

Nothing in it is executed: no pickle, no import by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from dropgen.config import Component, Frozen, Network, to_json
from dropgen.errors import CheckpointError, ResourceError
from dropgen.features.studies.codes import Code
from dropgen.features.studies.labelling import Labelling
from dropgen.features.studies.prepare import Preparation
from dropgen.platform.evaluation.quality import ClassRecord

FORMAT = 1
SPEC_FILE = "segmenter.json"
WEIGHTS_FILE = "weights.safetensors"


class SegmenterSpec(Frozen):
    """What a bundle says of itself.

    Attributes:
        name: What a person calls it.
        study: Name of the study it was trained on.
        classes: Class names, background first; the index is the label value where there are no regions.
        spacing: Voxel size the network works on, mm.
        crop: Window size in voxels.
        intensity: Intensity rule, or one rule per modality, or per channel where there are several.
        channels: Names of an image's channels, in their order; none where there is one, as in bundles from before
            there could be several.
        extractor: None for a method that reads the image alone.
        extractor_fingerprint: The very weights, options and code that made the training features.
        feature_scope: "volume": features are extracted once from the whole volume; "window": in each window.
        overlap: Fraction of a window that the next one repeats.
        training: What the training labels say of each class; bundles from before this was recorded have none.
        codes: What classes are in a terminology, as the study says.
        regions: With `regions_class_order` and `ignore` what label values mean, as the study says.
    """

    name: str
    study: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    crop: tuple[int, int, int]
    intensity: str | dict[str, str]
    channels: tuple[str, ...] = ()
    method: Component
    network: Network
    extractor: Component | None = None
    extractor_fingerprint: str | None = None
    feature_scope: Literal["volume", "window"] = "volume"
    overlap: float = 0.5
    training: dict[str, ClassRecord] = Field(default_factory=dict)
    codes: dict[str, Code] = Field(default_factory=dict)
    regions: tuple[tuple[int, ...], ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore: int | None = None

    @property
    def image_channels(self) -> int:
        """M, the channels of an image."""
        return len(self.channels) or 1

    @property
    def labelling(self) -> Labelling:
        """What the values of its masks, and of the labels that it was trained on, mean."""
        return Labelling(self.classes, self.regions, self.regions_class_order, self.ignore)

    @property
    def preparation(self) -> Preparation:
        """How a volume is brought to the network."""
        return Preparation(self.spacing, self.crop, self.intensity, self.channels)


def write_bundle(folder: Path, spec: SegmenterSpec, state: Mapping[str, Tensor]) -> None:
    """Writes a bundle; a reader finds the old bundle or the new one, also if this process is killed.

    Raises:
        ResourceError: The disk is full or not writable.
    """
    weights = tensors_to_bytes({key: value.cpu().contiguous() for key, value in state.items()})
    record = {"format": FORMAT, "weights_sha256": hashlib.sha256(weights).hexdigest(), "spec": to_json(spec)}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    previous = _previous(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial / WEIGHTS_FILE, weights)
        _write(partial / SPEC_FILE, json.dumps(record, indent=2).encode())
        if folder.exists():
            # A folder cannot be replaced in one step: `load` looks at `previous` between these two.
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ResourceError(
            f"cannot write the bundle {folder}: {error.strerror}; free space there or choose another --root"
        ) from error


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a bundle's `segmenter.json`: format, weights_sha256 and spec.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        record = json.loads((folder / SPEC_FILE).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {SPEC_FILE}; name the folder of a Segmenter bundle") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / SPEC_FILE} is damaged ({error}); export the bundle again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{folder / SPEC_FILE} is not a bundle of format {FORMAT}; use the version that wrote it")
    return record


def read_bundle(folder: Path) -> tuple[SegmenterSpec, dict[str, Tensor]]:
    """What a bundle says of itself, and its weights on the CPU.

    Raises:
        CheckpointError: It is missing, damaged or from a newer version.
    """
    if not folder.exists() and _previous(folder).exists():
        folder = _previous(folder)
    record = read_record(folder)
    try:
        spec = SegmenterSpec.model_validate(record["spec"])
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except (KeyError, ValidationError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder / SPEC_FILE} is damaged ({cause}); export the bundle again") from error
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} cannot be read: {error.strerror}") from error
    if hashlib.sha256(weights).hexdigest() != record.get("weights_sha256"):
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is not what {SPEC_FILE} recorded; copy or export it again")
    try:
        return spec, tensors_from_bytes(weights)
    except SafetensorError as error:
        raise misfit(folder, error) from error


def misfit(folder: Path, error: Exception) -> CheckpointError:
    """What is told of weights that are no tensors, or not those of the network that the bundle describes."""
    cause = " ".join(str(error).split())[:200]
    return CheckpointError(f"{folder / WEIGHTS_FILE} does not fit its network ({cause}); train again")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
