from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dropgen.errors import ConfigError
from dropgen.features.bench.timing import Spread, require_repeats, rounds, timed


def test_every_round_runs_every_contender_once() -> None:
    orders = list(rounds("abcd", 7, np.random.default_rng(0)))
    assert len(orders) == 7
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in orders)


def test_no_contender_always_follows_the_same_one_or_stands_in_the_same_place() -> None:
    orders = list(rounds("abc", 60, np.random.default_rng(1)))
    assert set(Counter(order.index("a") for order in orders)) == {0, 1, 2}
    before_b = {order[order.index("b") - 1] for order in orders if order[0] != "b"}
    assert before_b == {"a", "c"}


def test_one_generator_gives_one_order() -> None:
    assert list(rounds("abcd", 5, np.random.default_rng(3))) == list(rounds("abcd", 5, np.random.default_rng(3)))


def test_the_clock_is_read_directly_before_and_after_the_work() -> None:
    events: list[str] = []
    readings = iter((2.0, 7.5))

    def clock() -> float:
        events.append("clock")
        return next(readings)

    assert timed(lambda: events.append("work"), clock) == (5.5, None)
    assert events == ["clock", "work", "clock"]


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([9.0, 1.0, 4.0]) == Spread(median=4.0, low=1.0, high=9.0)
    assert Spread.of([9.0, 1.0, 4.0, 6.0]).median == 5.0


def test_fewer_than_five_repeats_are_refused() -> None:
    require_repeats(5)
    with pytest.raises(ConfigError, match="--repeats = 4: a benchmark needs at least 5"):
        require_repeats(4)
