"""Training methods: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.rep_only import RepOnly

Criterion = Callable[[Tensor, Tensor], Tensor]


class Method(Protocol):
    """A way to train a predictor: what enters the network and which loss it is trained on.

    Attributes:
        name: Registry name.
        acts_on: Where it acts: "nothing", "input", ...
        needs_features: Whether an extractor's features enter the network.
        search_space: For each hyperparameter the values that a search tries.
        source: Where the method is published.
    """

    name: ClassVar[str]
    acts_on: ClassVar[str]
    needs_features: ClassVar[bool]
    search_space: ClassVar[Mapping[str, tuple[float, ...]]]
    source: ClassVar[str]

    def in_channels(self, feature_channels: int) -> int:
        """Width of the network's input."""

    def plan(self, generator: np.random.Generator, feature_channels: int) -> np.ndarray:
        """Which input channels one training sample keeps, bool `[in_channels]`, before any is read."""

    def inputs(self, image_b1xyz: Tensor, features_bcxyz: Tensor | None) -> Tensor:
        """The network's input at inference: nothing random, nothing dropped."""

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The scalar training loss of one batch."""


METHODS: dict[str, type[Any]] = {method.name: method for method in (Erm, RepOnly, DropGen)}
ALIASES = {"maskgen": "dropgen"}


def build(component: Component) -> Method:
    """Builds a method by name.

    Raises:
        ConfigError: Unknown name or option, or a value out of range.
    """
    name = ALIASES.get(component.name, component.name)
    if name not in METHODS:
        raise ConfigError(f"unknown method '{component.name}'{closest(component.name, METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in component.options:
        if key not in known:
            hint = closest(key, known) if known else "; it has none"
            raise ConfigError(f"unknown option '{key}' of method '{name}'{hint}")
    method: Method = METHODS[name](**component.options)
    return method
