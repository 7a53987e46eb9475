"""The refusals of hyperparameters that do not fit, one sentence each."""

from __future__ import annotations

import math
from typing import Any

from dropgen.errors import ConfigError


def require_positive(owner: Any, field: str) -> None:
    """Refuses what is not a finite number above 0."""
    value = getattr(owner, field)
    if not _is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{owner.name}: {field} = {value!r} must be a number above 0")


def require_share(owner: Any, field: str) -> None:
    """Refuses what is not a number in [0, 1]."""
    value = getattr(owner, field)
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"{owner.name}: {field} = {value!r} must be a number from 0 to 1")


def require_count(owner: Any, field: str, at_least: int) -> None:
    """Refuses what is not a whole number of at least `at_least`."""
    value = getattr(owner, field)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{owner.name}: {field} = {value!r} must be a whole number of at least {at_least}")


def require_choice(owner: Any, field: str, choices: tuple[str, ...]) -> None:
    """Refuses what is not one of the words."""
    value = getattr(owner, field)
    if value not in choices:
        raise ConfigError(f"{owner.name}: {field} = {value!r} must be one of: {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
