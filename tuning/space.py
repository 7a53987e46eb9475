"""What is searched: an experiment's methods as fixed trials and as Optuna spaces.

Under the grid sampler every list is a grid; with a scheduler it is a space of which every point is tried. Under the tpe
sampler a list is a categorical choice and `{low: 0, high: 0.95}` (optionally `log: true`) a continuous range; a method
with neither is trained once per seed as it stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from dropgen.config import Component, Experiment, Trial
from dropgen.errors import ConfigError, closest
from dropgen.platform.methods import build
from dropgen.platform.train import trials_of

Distribution = CategoricalDistribution | FloatDistribution

RANGE_KEYS = ("low", "high", "log")
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Space:
    """The hyperparameters of one method that are explored with one seed.

    Attributes:
        method: The method with its fixed options only.
        distributions: Optuna distribution of each varied option.
    """

    method: Component
    distributions: Mapping[str, Distribution]

    @property
    def size(self) -> float:
        """Number of distinct points; infinite with a continuous range."""
        return math.prod(
            len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else math.inf
            for distribution in self.distributions.values()
        )

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a space of finite size."""
        choices = [
            distribution.choices
            for distribution in self.distributions.values()
            if isinstance(distribution, CategoricalDistribution)
        ]
        for values in itertools.product(*choices):
            yield dict(zip(self.distributions, values, strict=True))

    def trial(self, point: Mapping[str, Any], seed: int) -> Trial:
        """The trial at one point, floats rounded to four significant digits so that labels stay readable."""
        values = {key: _rounded(self.distributions[key], value) for key, value in point.items()}
        return Trial(method=Component.of(self.method.name, **self.method.options, **values), seed=seed)

    def point(self, method: Component) -> dict[str, Any] | None:
        """The point that a trained method stands for; None where it lies outside this space."""
        fixed, options = self.method.options, method.options
        if method.name != self.method.name or set(options) != {*fixed, *self.distributions}:
            return None
        inside = all(_contains(distribution, options[key]) for key, distribution in self.distributions.items())
        if not inside or any(options[key] != value for key, value in fixed.items()):
            return None
        return {key: options[key] for key in self.distributions}

    def corners(self) -> tuple[Component, ...]:
        """The method at every bound and every listed value, one option varied at a time."""
        extremes = {
            key: distribution.choices
            if isinstance(distribution, CategoricalDistribution)
            else (distribution.low, distribution.high)
            for key, distribution in self.distributions.items()
        }
        first = {key: values[0] for key, values in extremes.items()}
        points = [first | {key: value} for key, values in extremes.items() for value in values]
        return tuple(self.trial(point, seed=0).method for point in points)


@dataclass(frozen=True)
class Plan:
    """Everything that a search trains: trials known beforehand, and spaces to sample from."""

    fixed: tuple[Trial, ...]
    spaces: tuple[Space, ...] = ()

    @property
    def methods(self) -> tuple[Component, ...]:
        """Methods with plain values that stand for the whole plan, whatever the sampler will draw."""
        fixed = tuple(trial.method for trial in self.fixed)
        return fixed + tuple(corner for space in self.spaces for corner in space.corners())


def plan(experiment: Experiment) -> Plan:
    """Expands an experiment's methods and has every value checked before anything starts.

    Raises:
        ConfigError: A range under the grid sampler, a malformed range, or a value that its method refuses.
    """
    if experiment.search.sampler == "grid":
        _require_lists(experiment)
    whole = experiment.search.sampler == "grid" and experiment.search.scheduler == "none"
    made = Plan(trials_of(experiment)) if whole else _explored(experiment)
    for method in made.methods:
        build(method)
    return made


def _require_lists(experiment: Experiment) -> None:
    for method in experiment.methods:
        for key, value in method.options.items():
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"method {method.name}: {key} = {dict(value)} is a range, which the grid sampler cannot list; "
                    "list the values, or search the range with --search.sampler=tpe"
                )


def _explored(experiment: Experiment) -> Plan:
    spaces = tuple(_space(method) for method in experiment.methods)
    still = tuple(space.method for space in spaces if not space.distributions)
    fixed = trials_of(experiment.model_copy(update={"methods": still}))
    return Plan(fixed, tuple(space for space in spaces if space.distributions))


def _space(method: Component) -> Space:
    varied = {key: value for key, value in method.options.items() if isinstance(value, list | tuple | Mapping)}
    fixed = {key: value for key, value in method.options.items() if key not in varied}
    distributions = {key: _distribution(method.name, key, value) for key, value in varied.items()}
    return Space(Component.of(method.name, **fixed), distributions)


def _distribution(name: str, key: str, value: Any) -> Distribution:
    where = f"method {name}: {key} = {value}"
    if not isinstance(value, Mapping):
        if not value:
            raise ConfigError(f"{where} lists no value; name at least one")
        return CategoricalDistribution(tuple(value))
    for word in value:
        if word not in RANGE_KEYS:
            raise ConfigError(f"{where}: a range has no key '{word}'{closest(str(word), RANGE_KEYS)}")
    bounds, log = [value.get("low"), value.get("high")], value.get("log", False)
    if not all(map(_is_number, bounds)) or not isinstance(log, bool):
        raise ConfigError(f"{where} is no range; write {{low: 0.1, high: 0.9}} with numbers, and log: true if wanted")
    low, high = (float(bound or 0) for bound in bounds)
    if low >= high:
        raise ConfigError(f"{where}: low must be below high")
    if log and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range needs low above 0")
    return FloatDistribution(low, high, log=log)


def _rounded(distribution: Distribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), distribution.low), distribution.high)


def _contains(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return _is_number(value) and distribution.low <= value <= distribution.high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
