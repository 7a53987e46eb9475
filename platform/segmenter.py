"""The one object that predicts: in validation, in test, out of the registry and behind the server."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dropgen import memory
from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError, closest
from dropgen.features import extractors
from dropgen.features.extractors import Extractor, extract
from dropgen.features.extractors.rolling import RollingFeatures, rolling_bytes, rolls
from dropgen.features.extractors.tiles import peak_bytes
from dropgen.features.studies.prepare import Grid, Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform import methods
from dropgen.platform.bundle import SegmenterSpec, misfit, read_bundle, write_bundle
from dropgen.platform.evaluation.inference import (
    Collect,
    Features,
    T,
    cut_windows,
    native_mask,
    predict_slabs,
    prepared_mask,
    slab_axis,
    whole_logits,
    window_input,
)
from dropgen.platform.evaluation.live import peak_bytes as live_bytes
from dropgen.platform.methods import Method
from dropgen.platform.networks import build_network, size_rule


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
    def whole_features(self) -> bool:
        """Whether features of the whole volume are held while its windows are predicted."""
        return self._volume_extractor is not None and self._rolling is None

    @property
    def score_copies(self) -> float:
        """float32 volumes of all classes that are held at once: none, because a mask is made slab by slab."""
        return 0.0

    @cached_property
    def window_bytes(self) -> int:
        """Memory of the host that one window takes in the network, and in an extractor that sees windows."""
        return self._window_bytes(torch.no_grad(), lambda logits_bkxyz: logits_bkxyz)

    @cached_property
    def learning_bytes(self) -> int:
        """Memory of the host that one window takes in the network, forward and backward."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]

        def learn(logits_bkxyz: Tensor) -> object:
            return torch.autograd.grad(logits_bkxyz.sum(), trained, allow_unused=True)

        return self._window_bytes(torch.enable_grad(), learn)

    def extraction_bytes(self, shape: tuple[int, int, int]) -> int:
        """Memory that extracting the features of a whole prepared volume takes, themselves included."""
        if self._rolling is not None:
            axis = slab_axis(shape, self.spec.crop)
            return rolling_bytes(self._rolling, shape, axis, self.spec.crop[axis])
        return 0 if self._volume_extractor is None else peak_bytes(self._volume_extractor, shape)

    def predict(self, *channels: Volume, modality: str | None = None) -> np.ndarray:
        """Segments an image as it was read from its files.

        Args:
            channels: One volume per channel, in the order of `spec.channels`, on one grid of any orientation, spacing
                and size.
            modality: Required where the intensity rule of the only channel depends on it; never guessed.

        Returns:
            uint8 mask on the image's own grid.

        Raises:
            VolumeError: The image cannot be prepared.
        """
        return self.predict_native(prepare(channels, self.spec.preparation, modality))

    def predict_native(self, prepared: Prepared) -> np.ndarray:
        """The mask of `predict`, for whoever prepares the next volume while this one is in the model.

        Args:
            prepared: From `prepare`, by this segmenter's own preparation.

        Returns:
            uint8 mask on the grid of the volume that was prepared.
        """
        return self.over_slabs(
            prepared, None, lambda slabs: native_mask(slabs, prepared.grid, self.spec.labelling.order)
        )

    def predict_prepared(self, prepared: Prepared, features: np.ndarray | None = None) -> np.ndarray:
        """Segments a prepared volume.

        Args:
            prepared: From `prepare` or the feature store.
            features: Raw features `[C, X, Y, Z]` of the whole volume from the store; extracted when None.

        Returns:
            uint8 mask on the prepared grid.
        """
        order = self.spec.labelling.order
        return self.over_slabs(prepared, features, lambda slabs: prepared_mask(slabs, prepared.shape, order))

    def logits(self, prepared: Prepared, features: np.ndarray | None = None) -> Tensor:
        """Scores of every class and voxel at once, for test-time methods; a mask needs `predict_prepared` alone.

        Args:
            prepared: From `prepare` or the feature store.
            features: As for `predict_prepared`.

        Returns:
            `[K, X, Y, Z]` float32 on the prepared grid, on the CPU, without gradient.
        """
        return self.over_slabs(prepared, features, lambda slabs: whole_logits(slabs, prepared.shape))

    def over_slabs(self, prepared: Prepared, features: Features | None, collect: Collect[T]) -> T:
        """The one way from a prepared volume through the network; masks and logits are what is collected of it.

        Args:
            prepared: From `prepare` or the feature store.
            features: As for `predict_prepared`, or from `features`.
            collect: Makes something of the slabs of one pass over the volume.
        """
        if features is None:
            with memory.kept():
                features = self.features(prepared)
        with memory.kept(), _evaluating(self.network):
            return predict_slabs(
                self.network,
                self.method,
                prepared,
                features,
                self._window_extractor,
                collect,
                crop=self.spec.crop,
                overlap=self.spec.overlap,
                device=self.device,
            )

    def features(self, prepared: Prepared) -> Features | None:
        """What `over_slabs` makes for itself, to be given to several of its passes.

        An extractor whose halo is exact and thin follows the windows; another sees the whole volume at once.
        """
        if self._rolling is None:
            return self.raw_features(prepared)
        axis = slab_axis(prepared.shape, self.spec.crop)
        return RollingFeatures(self._rolling, prepared.unit, axis, self.spec.crop[axis], self.device)

    def raw_features(self, prepared: Prepared, stored: np.ndarray | None = None) -> np.ndarray | None:
        """Raw features `[C, X, Y, Z]` of the whole volume, extracted unless `stored` holds them.

        None where the network reads no features, or each window extracts its own.
        """
        if self._volume_extractor is None:
            return None
        return extract(self._volume_extractor, prepared.unit, self.device)[0] if stored is None else stored

    def window_input(self, prepared: Prepared, features: np.ndarray | None, box: tuple[slice, slice, slice]) -> Tensor:
        """The network's input `[1, in_channels, x, y, z]` for one window, the very one that `logits` would make.

        Args:
            prepared: The volume.
            features: What `raw_features` returned for it.
            box: Where the window lies.
        """
        unit_1mxyz, raw_1cxyz = cut_windows(prepared, features, [box], self.device)
        return window_input(self.method, prepared, unit_1mxyz, raw_1cxyz, self._window_extractor)

    def around(self, network: nn.Module) -> Segmenter:
        """The same segmenter around another network of the same inputs and classes."""
        return Segmenter(self.spec, network, self.method, self._extractor, self.device)

    def clone(self) -> Segmenter:
        """The same segmenter around a copy of its network, in eval mode: what is done to that leaves this one alone."""
        return self.around(copy.deepcopy(self.network).eval())

    def _window_bytes(self, mode: AbstractContextManager[None], use: Callable[[Tensor], object]) -> int:
        """Measured on a blank window of the smallest legal size: it takes a moment, and bytes grow with voxels."""
        crop = self.spec.crop
        if self.device != "cpu":  # there the network works in the device's memory, and inputs and logits come and go
            width = self.feature_channels + self.spec.image_channels + self.spec.labelling.outputs
            return 4 * width * math.prod(crop)
        rule, extractor = size_rule(self.spec.network, self.method), self._window_extractor
        multiple = math.lcm(rule.multiple, extractor.multiple if extractor else 1)
        edge = -(-max(rule.smallest, extractor.min_size if extractor else 1) // multiple) * multiple
        x, y, z = (min(edge, size) for size in crop)
        count = self.spec.image_channels
        unit = np.zeros((count, x, y, z), np.float32)
        grid = Grid.of(Volume(unit[0], np.diag([*self.spec.spacing, 1.0])), self.spec.preparation)
        blank = Prepared(unit, (0.0,) * count, (1.0,) * count, grid)
        features = None if extractor else np.zeros((self.feature_channels, x, y, z), np.float32)

        def work() -> None:
            window = self.window_input(blank, features, (slice(x), slice(y), slice(z)))
            use(self.method.predict(self.network, lambda predict: predict(window)))

        with _evaluating(self.network), mode:
            return math.ceil(live_bytes(work) * math.prod(crop) / (x * y * z))

    @property
    def _rolling(self) -> Extractor | None:
        extractor = self._volume_extractor
        return extractor if extractor is not None and rolls(extractor, min(self.spec.crop)) else None

    @property
    def _volume_extractor(self) -> Extractor | None:
        return self._extractor if self.spec.feature_scope == "volume" else None

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
        network = build_network(
            spec.network, method, self.feature_channels, spec.labelling.outputs, spec.image_channels
        )
        network.load_state_dict(self.network.state_dict())
        return Segmenter(spec, network.to(self.device).eval(), method, self._extractor, self.device)

    def save(self, folder: Path) -> None:
        """Writes the bundle; see `write_bundle`."""
        write_bundle(folder, self.spec, self.network.state_dict())

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Segmenter:
        """Reads a bundle.

        Raises:
            CheckpointError: The bundle is missing, damaged or from a newer version.
            WeightsError: Extractor weights are missing, or are not those of the training.
        """
        spec, state = read_bundle(folder)
        method = methods.build(spec.method)
        extractor = None
        if spec.extractor and method.needs_features:
            extractor = extractors.build(spec.extractor, device, spec.image_channels)
        channels = extractor.channels if extractor else 0
        network = build_network(spec.network, method, channels, spec.labelling.outputs, spec.image_channels)
        network = network.to(device).eval()
        segmenter = cls(spec, network, method, extractor, device)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise misfit(folder, error) from error
        return segmenter


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
