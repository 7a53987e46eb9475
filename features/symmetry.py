"""The 48 ways to permute and flip the three axes of a volume: flips and quarter turns, exactly."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class AxisSymmetry:
    """Permutes the last three axes, then flips.

    Attributes:
        order: Axis i of the result is axis `order[i]` of the input.
        flips: Whether axis i of the result is reversed.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def __call__(self, array: Array) -> Array:
        """Applies the symmetry to the last three axes; numpy in, numpy out; tensor in, tensor out."""
        lead: int = len(array.shape) - 3
        axes = (*range(lead), *(lead + axis for axis in self.order))
        reverse = tuple(lead + axis for axis in range(3) if self.flips[axis])
        if isinstance(array, Tensor):
            return torch.flip(array.permute(axes), reverse)
        return np.flip(array.transpose(axes), reverse)

    def of_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of the result for an input of `shape`."""
        return (shape[self.order[0]], shape[self.order[1]], shape[self.order[2]])

    def of_offset(self, offset: tuple[int, int, int]) -> tuple[int, int, int]:
        """Where a displacement in the input points to in the result."""
        moved = [-offset[axis] if flip else offset[axis] for axis, flip in zip(self.order, self.flips, strict=True)]
        return (moved[0], moved[1], moved[2])


SYMMETRIES: tuple[AxisSymmetry, ...] = tuple(
    AxisSymmetry(order, flips)  # type: ignore[arg-type]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
)
IDENTITY = AxisSymmetry()
