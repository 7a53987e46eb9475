"""Everything that can be compared, described in one way: methods, test-time methods, extractors, external baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.features.extractors import EXTRACTORS, options
from dropgen.platform.adaptation import ADAPTATIONS, Adaptation
from dropgen.platform.external import EXTERNALS
from dropgen.platform.methods import ALIASES, METHODS, Method
from dropgen.platform.networks import PREDICTORS

ALL = "all"
# In the order in which they are listed.
KINDS = ("method", "ablation", "composition", "adaptation", "extractor", "external")


@dataclass(frozen=True)
class Entry:
    """One registered part.

    Attributes:
        kind: One of `KINDS`.
        acts_on: Where it changes plain training: "nothing", "input", "layers", "loss"; of a test-time method "layers",
            "weights" or "logits"; "features" of an extractor, "everything" of a baseline from elsewhere.
        hyperparameters: With their defaults.
        search_space: For each hyperparameter the values that a search tries.
        predictors: The values of `network.name` that it works with; none where it brings its own network or reads none.
        needs_features: Whether it, or a model beside it, reads an extractor's features.
        source: Where it is published.
    """

    name: str
    kind: str
    acts_on: str
    hyperparameters: Mapping[str, Any]
    search_space: Mapping[str, tuple[Any, ...]]
    predictors: tuple[str, ...]
    needs_features: bool
    source: str


def catalogue() -> tuple[Entry, ...]:
    """Every registered part, ordered by kind and within a kind as registered."""
    entries = [
        *map(_of_method, METHODS.values()),
        *map(_of_adaptation, ADAPTATIONS.values()),
        *map(_of_extractor, EXTRACTORS),
        *map(_of_external, EXTERNALS),
    ]
    return tuple(sorted(entries, key=lambda entry: KINDS.index(entry.kind)))


def choose_names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """What `--methods` names, in the order of `known`: "all", or names with commas between them.

    Raises:
        ConfigError: One is unknown.
    """
    names = known if text == ALL else [ALIASES.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--methods: unknown method '{name}'{closest(name, (ALL, *known))}")
    return tuple(name for name in known if name in names)


def _of_method(method: type[Method]) -> Entry:
    predictors = ("unet",) if method.needs_unet else tuple(PREDICTORS) if method.sizes is None else ()
    return Entry(
        method.name, method.kind, method.acts_on, method.options(), method.search_space, predictors,
        method.needs_features, method.source,
    )  # fmt: skip


def _of_adaptation(adaptation: type[Adaptation]) -> Entry:
    defaults = {field.name: field.default for field in dataclasses.fields(adaptation)}
    return Entry(
        adaptation.name, adaptation.kind, adaptation.acts_on, defaults, adaptation.search_space,
        ("unet",) if adaptation.needs_unet else tuple(PREDICTORS), adaptation.needs_stable, adaptation.source,
    )  # fmt: skip


def _of_extractor(name: str) -> Entry:
    return Entry(name, "extractor", "features", options(name), {}, (), False, EXTRACTORS[name].source)


def _of_external(name: str) -> Entry:
    source = (EXTERNALS[name].__doc__ or "").partition("\n")[0]
    defaults = dataclasses.asdict(EXTERNALS[name].build(Component.of(name)))
    return Entry(name, "external", "everything", defaults, {}, (), False, source)
