"""Intensity rules: how the raw values of one volume become unit scale and the network's image channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dropgen.errors import ConfigError, closest

ZSCORE = "zscore"  # the one rule whose channel is not unit scale
RULES = ("minmax", "percentile", ZSCORE, "hu")
PERCENTILES = (0.5, 99.5)
HU_WINDOW = (-1024.0, 1024.0)


@dataclass(frozen=True)
class Scaling:
    """A scaled volume.

    Attributes:
        unit: [X, Y, Z] float32 in [0, 1].
        shift: With `scale` gives the network's channel, `(unit - shift) / scale`.
        scale: 1 for every rule but `zscore`.
    """

    unit: np.ndarray
    shift: float = 0.0
    scale: float = 1.0


def scale_intensity(array: np.ndarray, rule: str) -> Scaling:
    """Scales one volume; a constant volume becomes 0 under every rule.

    - `minmax`: the extremes go to 0 and 1.
    - `percentile`: the 0.5th and 99.5th percentile go to 0 and 1, values beyond are clipped; the extremes
      where the two coincide, as in a volume that is almost all background.
    - `zscore`: unit scale is min-max; shift and scale make the channel the z-score of the raw values.
    - `hu`: clips to [-1024, 1024] HU, which go to 0 and 1.

    Args:
        array: [X, Y, Z] float32, finite.
        rule: One of `RULES`.

    Raises:
        ConfigError: The rule is unknown.
    """
    require_rule(rule)
    low, high = float(array.min()), float(array.max())
    if low == high:
        return Scaling(np.zeros(array.shape, np.float32))
    if rule == "hu":
        low, high = HU_WINDOW
    elif rule == "percentile":
        inner_low, inner_high = (float(value) for value in np.percentile(array, PERCENTILES))
        if _half_range(inner_low, inner_high) > 0:
            low, high = inner_low, inner_high
    if _half_range(low, high) == 0:  # 1e-45, the smallest float32, has no half
        return Scaling(np.zeros(array.shape, np.float32))
    unit = _stretch(array, low, high)
    if rule != ZSCORE:
        return Scaling(unit)
    return Scaling(unit, float(unit.mean(dtype=np.float64)), float(unit.std(dtype=np.float64)))


def require_rule(rule: str) -> None:
    """Raises ConfigError for an unknown rule, and for one that would scale every crop by itself."""
    if "crop" in rule:
        raise ConfigError(
            f"intensity rule '{rule}' is refused: features are stored once per volume, in the unit scale of it, and "
            "a crop scaled by its own extremes would not belong to them; choose minmax, which is of the whole volume"
        )
    if rule not in RULES:
        raise ConfigError(f"intensity rule '{rule}' is unknown{closest(rule, RULES)}")


def _stretch(array: np.ndarray, low: float, high: float) -> np.ndarray:
    unit = (array / 2 - np.float32(low / 2)) / _half_range(low, high)
    return np.clip(unit, 0, 1).astype(np.float32, copy=False)


def _half_range(low: float, high: float) -> np.float32:
    # Halves, because the range of float32 values can exceed the largest float32.
    return np.float32(high / 2 - low / 2)
