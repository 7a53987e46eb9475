"""What a training method is: plain training on the image, with one place for every change to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch
from dropgen.platform.sizes import SizeRule

# Logits `[B, K, X, Y, Z]` and label, int64 `[B, 1, ...]` or class probabilities `[B, K, ...]`, to a scalar.
Criterion = Callable[[Tensor, Tensor], Tensor]
# Input channels to an untrained predictor.
MakePredictor = Callable[[int], nn.Module]
T = TypeVar("T")
# What maps a batch of windows `[B, in_channels, x, y, z]` to logits, to what is made of the blended logits of a volume.
OverWindows = Callable[[Callable[[Tensor], Tensor]], T]


@dataclass(frozen=True)
class Method:
    """A way to train a predictor; left as it is, empirical risk minimisation on the image.

    A subclass is a frozen dataclass whose fields are its hyperparameters, and overrides what it changes. In the
    order of one training step: `plan` decides which input channels survive, before anything is read; `augment` changes
    the crops, before features are extracted from them; `network` builds what is trained; `loss` is minimised.

    Attributes:
        kind: What it is in a list: "method", "ablation" of DropGen's parts, or "composition" of two methods.
        name: Registry name.
        acts_on: Where it acts: "nothing", "input", "layers", "loss".
        needs_features: Whether an extractor's features enter the network.
        needs_unet: Whether it reaches into the layers of the flat UNet, and so takes no other predictor.
        under_dropgen: Whether `dropgen+<name>` makes sense: it changes image and label of a crop, and nothing else.
        needs_online: Whether stored features would belong to another image than the one its `augment` makes.
        best_seed: Whether it is published as the best of its seeds on validation, not as their mean.
        one_class: Whether it takes every voxel of a crop to have one known class: no regions, nothing to ignore.
        unit_scale: Whether it starts from weights that were trained on intensities in [0, 1].
        one_channel: Whether it takes images of one channel alone.
        sizes: The crops it takes where it trains a network of its own instead of the predictor.
        passes: Passes over a volume's windows whose results a prediction holds at once.
        search_space: For each hyperparameter the values that a search tries.
        source: Where the method is published.
    """

    kind: ClassVar[str] = "method"
    name: ClassVar[str]
    acts_on: ClassVar[str]
    needs_features: ClassVar[bool] = False
    needs_unet: ClassVar[bool] = False
    under_dropgen: ClassVar[bool] = False
    needs_online: ClassVar[bool] = False
    best_seed: ClassVar[bool] = False
    one_class: ClassVar[bool] = False
    unit_scale: ClassVar[bool] = False
    one_channel: ClassVar[bool] = False
    sizes: ClassVar[SizeRule | None] = None
    passes: ClassVar[int] = 1
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    source: ClassVar[str]

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The hyperparameters as an experiment names them, with their defaults."""
        return {field.name: field.default for field in fields(cls)}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Builds the method from some of its `options`."""
        return cls(**options)

    @property
    def after_training(self) -> Mapping[str, tuple[Any, ...]]:
        """Hyperparameters that training does not depend on, each with the values to try on the trained network."""
        return {}

    def in_channels(self, feature_channels: int, image_channels: int = 1) -> int:
        """Width of the network's input."""
        return image_channels

    def plan(self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1) -> np.ndarray:
        """Which input channels one training sample keeps, bool `[in_channels]`, before any is read."""
        return np.ones(self.in_channels(feature_channels, image_channels), dtype=bool)

    def draw(
        self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1
    ) -> tuple[np.ndarray, float]:
        """One training sample's `plan`, and the strength that a method draws with it; 0 where it draws none."""
        return self.plan(generator, feature_channels, image_channels), 0.0

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Changes a batch of crops in unit scale, before features are extracted from them; in training only.

        Runs in the loader's thread: all randomness comes from the generators.

        Args:
            image_bcxyz: `[B, M, X, Y, Z]` float32 in [0, 1].
            label_bcxyz: `[B, 1, X, Y, Z]` int64.
            classes: K, background included.
            generators: One per sample; a decision about the whole batch takes the first.

        Returns:
            The image, all of its M channels as many times side by side as the method wants, and the label, or float
            class probabilities `[B, K, X, Y, Z]`.
        """
        return image_bcxyz, label_bcxyz

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """Builds the network that is trained, stored and served.

        Called with a whole input `[B, in_channels, X, Y, Z]` alone, in eval mode, it must give logits
        `[B, classes, X, Y, Z]`; in training mode `loss` may hand it more.
        """
        return predictor(self.in_channels(feature_channels, image_channels))

    def pretrained(self) -> str | None:
        """Fingerprint of the weights that `initialise` loads, None where it loads none; keys the trial.

        Raises:
            WeightsError: They are missing or are not the ones that are needed.
        """
        return None

    def initialise(self, network: nn.Module) -> None:
        """Puts pretrained weights into what `network` built, before training; a trained network is loaded without it.

        Raises:
            WeightsError: As `pretrained`.
        """

    def inputs(self, image_bmxyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The network's input at inference: nothing random, nothing dropped."""
        return image_bmxyz

    def predict(self, network: nn.Module, over_windows: OverWindows[T]) -> T:
        """What is predicted of one whole volume: one pass over its windows, or the chosen one of several.

        A method chooses among results without looking into them: they are masks where a mask is wanted and logits
        where those are, and only the former are never held for all classes at once.

        Args:
            network: In eval mode.
            over_windows: Runs what maps a window's input to its logits over all windows, and blends.
        """
        return over_windows(network)

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The scalar training loss of one batch.

        Layers and losses may draw from PyTorch's global generator: it is seeded before every step.
        """
        return criterion(network(batch.image_bcxyz), batch.label_bcxyz)
