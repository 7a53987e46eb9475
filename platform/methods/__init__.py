"""Training methods: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

import dataclasses

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.platform.methods.any_p import DropGenAnyP
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.finetune import FinetuneDecoder, FinetuneExtractor, FinetuneScratch
from dropgen.platform.methods.method import Criterion, Method
from dropgen.platform.methods.rep_only import RepOnly
from dropgen.platform.methods.squeeze_excite import SqueezeExcite
from dropgen.platform.methods.structured_dropout import StructuredDropout

__all__ = ["ALIASES", "METHODS", "Criterion", "Method", "build"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Erm,
        RepOnly,
        DropGen,
        DropGenAnyP,
        StructuredDropout,
        SqueezeExcite,
        FinetuneExtractor,
        FinetuneDecoder,
        FinetuneScratch,
    )
}
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
    return METHODS[name](**component.options)
