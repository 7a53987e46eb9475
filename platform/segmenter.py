"""The one object that predicts: in validation, in test, out of the registry and behind the server.

A bundle is a folder with `segmenter.json` (everything needed to predict) and `weights.safetensors`.
Nothing in it is executed: no pickle, no import by name.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from dropgen.config import Component, Frozen, Network, to_json
from dropgen.errors import CheckpointError, ConfigError, ResourceError, WeightsError, closest
from dropgen.features import extractors
from dropgen.features.extractors import Extractor, extract
from dropgen.features.studies.prepare import Preparation, Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform import methods
from dropgen.platform.evaluation.inference import predict_logits, side_by_side, window_input
from dropgen.platform.methods import Method
from dropgen.platform.networks import build_network

FORMAT = 1
SPEC_FILE = "segmenter.json"
WEIGHTS_FILE = "weights.safetensors"


class SegmenterSpec(Frozen):
    """What a bundle says of itself.

    Attributes:
        name: What a person calls it.
        study: Name of the study it was trained on.
        classes: Class names; the index is the label value, 0 is background.
        spacing: Voxel size the network works on, mm.
        crop: Window size in voxels.
        intensity: Intensity rule, or one rule per modality.
        extractor: None for a method that reads the image alone.
        extractor_fingerprint: The very weights, options and code that made the training features.
        feature_scope: "volume": features are extracted once from the whole volume; "window": in each window.
        overlap: Fraction of a window that the next one repeats.
    """

    name: str
    study: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    crop: tuple[int, int, int]
    intensity: str | dict[str, str]
    method: Component
    network: Network
    extractor: Component | None = None
    extractor_fingerprint: str | None = None
    feature_scope: Literal["volume", "window"] = "volume"
    overlap: float = 0.5

    @property
    def preparation(self) -> Preparation:
        """How a volume is brought to the network."""
        return Preparation(spacing=self.spacing, crop=self.crop, intensity=self.intensity)


class Segmenter:
    """A network with all that stands between a file's voxels and a mask on the same voxels.

    Args:
        spec: What to do with a volume.
        network: Maps the method's input to logits; used in place, so a training loop can validate with it.
        method: Builds the network's input.
        extractor: Needed by methods that read features.
        device: Where the network is.

    Raises:
        WeightsError: The extractor is not the one that the spec names.
    """

    def __init__(
        self,
        spec: SegmenterSpec,
        network: nn.Module,
        method: Method,
        extractor: Extractor | None,
        device: str = "cpu",
    ) -> None:
        found = extractor.fingerprint if extractor is not None and method.needs_features else None
        if found != spec.extractor_fingerprint:
            raise WeightsError(
                f"segmenter '{spec.name}' was trained on features of extractor '{spec.extractor_fingerprint}' but this"
                f" process has '{found}'; use the same extractor, options and weights"
            )
        self.spec = spec
        self.network = network
        self.method = method
        self.device = device
        self._extractor = extractor if method.needs_features else None

    @property
    def feature_channels(self) -> int:
        """Channels of the features that the network reads; 0 without an extractor."""
        return self._extractor.channels if self._extractor is not None else 0

    @property
    def class_copies(self) -> float:
        """float32 volumes of every class that a prediction holds beside the one that it returns."""
        return self.method.copies

    def predict(self, volume: Volume, modality: str | None = None) -> np.ndarray:
        """Segments a volume as it was read from a file.

        Args:
            volume: Any orientation, spacing and size.
            modality: Required where the intensity rule depends on it; never guessed.

        Returns:
            uint8 mask on the volume's own grid.

        Raises:
            VolumeError: The volume cannot be prepared.
        """
        prepared = prepare(volume, self.spec.preparation, modality)
        return prepared.grid.restore(self.predict_prepared(prepared))

    def predict_prepared(self, prepared: Prepared, features: np.ndarray | None = None) -> np.ndarray:
        """Segments a prepared volume.

        Args:
            prepared: From `prepare` or the feature store.
            features: Raw features `[C, X, Y, Z]` of the whole volume from the store; extracted when None.

        Returns:
            uint8 mask on the prepared grid.
        """
        return self.logits(prepared, features).argmax(dim=0).to(torch.uint8).numpy()

    def logits(self, prepared: Prepared, features: np.ndarray | None = None) -> Tensor:
        """Scores of every class, whose argmax is the mask.

        Args:
            prepared: From `prepare` or the feature store.
            features: As for `predict_prepared`.

        Returns:
            `[K, X, Y, Z]` float32 on the prepared grid, on the CPU, without gradient.
        """
        features = self.raw_features(prepared, features)
        with _evaluating(self.network):
            return predict_logits(
                self.network,
                self.method,
                prepared,
                features,
                self._window_extractor,
                crop=self.spec.crop,
                overlap=self.spec.overlap,
                device=self.device,
            )

    def raw_features(self, prepared: Prepared, stored: np.ndarray | None = None) -> np.ndarray | None:
        """Raw features `[C, X, Y, Z]` of the whole volume, extracted unless `stored` holds them.

        None where the network reads no features, or each window extracts its own.
        """
        if self._extractor is None or self._window_extractor is not None:
            return None
        return extract(self._extractor, prepared.unit, self.device)[0] if stored is None else stored

    def window_input(self, prepared: Prepared, features: np.ndarray | None, box: tuple[slice, slice, slice]) -> Tensor:
        """The network's input `[1, in_channels, x, y, z]` for one window, the very one that `logits` would make.

        Args:
            prepared: The volume.
            features: What `raw_features` returned for it.
            box: Where the window lies.
        """
        window = side_by_side(prepared.unit[box], None if features is None else features[:, *box])
        return window_input(self.method, prepared, window.to(self.device), self._window_extractor)

    def clone(self) -> Segmenter:
        """The same segmenter around a copy of its network, in eval mode: what is done to that leaves this one alone."""
        return Segmenter(self.spec, copy.deepcopy(self.network).eval(), self.method, self._extractor, self.device)

    @property
    def _window_extractor(self) -> Extractor | None:
        return self._extractor if self.spec.feature_scope == "window" else None

    def with_options(self, **options: Any) -> Segmenter:
        """The same weights under other values of the hyperparameters that training did not depend on.

        `segmenter.with_options(p=0.25)` for `dropgen_any_p`; `save` then keeps them.

        Raises:
            ConfigError: Training depended on one of them, or a value is out of range.
        """
        for name in options:
            if name not in self.method.after_training:
                free = self.method.after_training
                hint = closest(name, free) if free else "; it has none"
                raise ConfigError(f"'{name}' is no option that method '{self.method.name}' takes after training{hint}")
        component = Component.of(self.spec.method.name, **self.spec.method.options | options)
        spec, method = self.spec.model_copy(update={"method": component}), methods.build(component)
        network = build_network(spec.network, method, self.feature_channels, len(spec.classes))
        network.load_state_dict(self.network.state_dict())
        return Segmenter(spec, network.to(self.device).eval(), method, self._extractor, self.device)

    def save(self, folder: Path) -> None:
        """Writes the bundle; a reader finds the old bundle or the new one, also if this process is killed.

        Raises:
            ResourceError: The disk is full or not writable.
        """
        weights = tensors_to_bytes({key: value.cpu().contiguous() for key, value in self.network.state_dict().items()})
        record = {"format": FORMAT, "weights_sha256": hashlib.sha256(weights).hexdigest(), "spec": to_json(self.spec)}
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

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Segmenter:
        """Reads a bundle.

        Raises:
            CheckpointError: The bundle is missing, damaged or from a newer version.
            WeightsError: Extractor weights are missing, or are not those of the training.
        """
        if not folder.exists() and _previous(folder).exists():
            folder = _previous(folder)
        spec, weights = _read(folder)
        method = methods.build(spec.method)
        extractor = extractors.build(spec.extractor, device) if spec.extractor and method.needs_features else None
        channels = extractor.channels if extractor else 0
        network = build_network(spec.network, method, channels, len(spec.classes)).to(device).eval()
        segmenter = cls(spec, network, method, extractor, device)
        try:
            network.load_state_dict(tensors_from_bytes(weights))
        except (SafetensorError, RuntimeError) as error:
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit its network ({cause}); train again") from error
        return segmenter


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


def _read(folder: Path) -> tuple[SegmenterSpec, bytes]:
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
    return spec, weights


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    if not training:  # a served network is never switched, so threads can share it
        yield
        return
    network.eval()
    try:
        yield
    finally:
        network.train()
