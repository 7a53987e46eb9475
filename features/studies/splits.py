"""What splits there are, and the one shuffle that divides people into them; the run's seed has no part in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_SEED = 123  # of the released code; ten items become 7, 4, 0, 2, 1, 5, 6, 8, 3, 9

Item = TypeVar("Item")


def shuffled(items: Iterable[Item]) -> list[Item]:
    """The items in the order of one in-place shuffle by a new `numpy.random.default_rng(SPLIT_SEED)`.

    Only the number of items decides the permutation, so the caller's order is part of the split.
    """
    order = list(items)
    np.random.default_rng(SPLIT_SEED).shuffle(order)
    return order
