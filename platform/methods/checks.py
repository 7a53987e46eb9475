"""What methods, test-time methods too, refuse before anything is computed, each in one sentence."""

from __future__ import annotations

from torch import nn

from dropgen.errors import ConfigError
from dropgen.features.unet import UNet


def require_number(method: str, key: str, value: object, interval: str) -> None:
    """Checks a hyperparameter that may hold anything, since it comes from a YAML file.

    Args:
        method: Name of the method.
        key: Name of the hyperparameter.
        value: What it was set to.
        interval: The legal range in mathematical notation: "[0, 1)" for at least 0 and below 1.

    Raises:
        ConfigError: The value is no number or lies outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    legal = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (low < value < high or (interval[0] == "[" and value == low) or (interval[-1] == "]" and value == high))
    )
    if not legal:
        raise ConfigError(f"{method}: {key} = {value!r} must be a number in {interval}")


def require_count(method: str, key: str, value: object, at_least: int) -> None:
    """Checks a hyperparameter that counts something.

    Raises:
        ConfigError: The value is no whole number of at least `at_least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{method}: {key} = {value!r} must be a whole number of at least {at_least}")


def require_choice(method: str, key: str, value: object, choices: tuple[object, ...]) -> None:
    """Checks a hyperparameter that takes one of a few values; True is not 1.

    Raises:
        ConfigError: The value is none of them.
    """
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ConfigError(f"{method}: {key} = {value!r} must be one of {', '.join(map(repr, choices))}")


def require_unet(method: str, predictor: nn.Module) -> UNet:
    """The predictor, known to be the flat UNet whose layers a method reaches into.

    Raises:
        ConfigError: It is another network.
    """
    if not isinstance(predictor, UNet):
        kind = type(predictor).__name__
        raise ConfigError(f"{method} reaches into the layers of the flat UNet and cannot train the predictor {kind}")
    return predictor
