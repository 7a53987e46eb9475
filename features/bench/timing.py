"""How benchmarks time their contenders: side by side, in an order that changes every round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from dropgen.errors import ConfigError

LEAST_REPEATS = 5
T = TypeVar("T")


def require_repeats(repeats: int) -> None:
    """Refuses a number of rounds whose median would say little.

    Raises:
        ConfigError: There are fewer than 5.
    """
    if repeats < LEAST_REPEATS:
        raise ConfigError(f"--repeats = {repeats}: a benchmark needs at least {LEAST_REPEATS}")


def rounds(contenders: Sequence[T], repeats: int, generator: np.random.Generator) -> Iterator[list[T]]:
    """Every contender once a round, each round in a new random order.

    So a machine that slows down slows all of them, and none is always behind the one that emptied the caches.
    """
    for _ in range(repeats):
        yield [contenders[index] for index in generator.permutation(len(contenders))]


def timed(work: Callable[[], T], clock: Callable[[], float]) -> tuple[float, T]:
    """Seconds that the work took by this clock, and its result."""
    began = clock()
    result = work()
    return clock() - began, result


@dataclass(frozen=True)
class Spread:
    """What is told of a contender's repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Median, least and greatest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))
