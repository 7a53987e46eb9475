"""What a test-time method is, and what it meets: trained models and one unlabelled volume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from dropgen.config import Component
from dropgen.features.studies.prepare import Prepared
from dropgen.platform.methods import Method
from dropgen.platform.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class Target:
    """One unlabelled volume with the trained models that meet it; what is computed is kept for the next question.

    Attributes:
        model: The model that is adapted.
        stable: The model that reads the stable features alone; None for methods that need none.
        prepared: The volume.
        stored: Its raw features `[C, X, Y, Z]` from the store; extracted when None.
    """

    model: Segmenter
    stable: Segmenter | None
    prepared: Prepared
    stored: np.ndarray | None = None

    @cached_property
    def features(self) -> np.ndarray | None:
        """What the adapted model reads beside the image."""
        return self.model.raw_features(self.prepared, self.stored)

    @cached_property
    def logits_kxyz(self) -> Tensor:
        """The model's plain prediction, without adaptation."""
        return self.model.logits(self.prepared, self.features)

    @cached_property
    def stable_logits_kxyz(self) -> Tensor:
        """The stable model's plain prediction."""
        assert self.stable is not None
        return self.stable.logits(self.prepared, self.stored)


@dataclass(frozen=True)
class Adaptation(ABC):
    """A way to change a prediction on one test volume, without its label.

    A subclass is a frozen dataclass whose fields are its hyperparameters. It starts every volume from the stored
    weights, by working on a `Segmenter.clone`, and changes nothing that it is given.

    Attributes:
        name: Registry name.
        acts_on: What it changes: "layers", "weights" or "logits".
        adapts: The models that it is published for, which a comparison of all methods therefore trains.
        needs_stable: Whether it needs a RepOnly model beside the one that is adapted.
        needs_unet: Whether it adapts batch norms, which of the predictors the flat UNet alone has.
        copies: float32 volumes of every class that it holds beside the scores that it returns.
        search_space: For each hyperparameter the values that are tried on the validation cases; among equally good
            ones the first in this order is taken.
        source: Where it is published.
    """

    kind: ClassVar[str] = "adaptation"
    name: ClassVar[str]
    acts_on: ClassVar[str]
    adapts: ClassVar[tuple[Component, ...]]
    needs_stable: ClassVar[bool] = False
    needs_unet: ClassVar[bool] = False
    copies: ClassVar[float] = 0.0
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]]
    source: ClassVar[str]

    @property
    def learns_from(self) -> int:
        """Windows that one of its gradient steps takes at once; 0 where it takes none."""
        return 0

    @classmethod
    @abstractmethod
    def suits(cls, method: Method) -> bool:
        """Whether it is meant for models that this method trained."""

    @abstractmethod
    def scores(self, target: Target, generator: np.random.Generator) -> Tensor:
        """Logits or probabilities of every class, `[K, X, Y, Z]` on the prepared grid, whose argmax is the mask.

        Args:
            target: The volume and the models.
            generator: Where all random crops come from.
        """

    def calibrated(self, cases: Iterable[tuple[Target, np.ndarray]]) -> Self:
        """Fits what needs no search, from validation volumes and their labels `[X, Y, Z]`."""
        return self
