"""Test-time methods: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

import dataclasses

from dropgen.config import Component
from dropgen.errors import ConfigError, closest
from dropgen.platform.adaptation.adaptation import Adaptation, Target
from dropgen.platform.adaptation.alpha import Alpha
from dropgen.platform.adaptation.sfb import Sfb
from dropgen.platform.adaptation.tent import Tent

__all__ = ["ADAPTATIONS", "Adaptation", "Target", "build"]

ADAPTATIONS: dict[str, type[Adaptation]] = {adaptation.name: adaptation for adaptation in (Tent, Sfb, Alpha)}


def build(component: Component) -> Adaptation:
    """Builds a test-time method by name.

    Raises:
        ConfigError: Unknown name or option, or a value out of range.
    """
    if component.name not in ADAPTATIONS:
        raise ConfigError(f"unknown test-time method '{component.name}'{closest(component.name, ADAPTATIONS)}")
    adaptation = ADAPTATIONS[component.name]
    known = [field.name for field in dataclasses.fields(adaptation)]
    for key in component.options:
        if key not in known:
            raise ConfigError(f"unknown option '{key}' of test-time method '{adaptation.name}'{closest(key, known)}")
    return adaptation(**component.options)
