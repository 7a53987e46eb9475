"""How far two surfaces lie apart: HD95 and the normalised surface Dice (NSD) of one class.

The surface of a mask is what binary erosion by the six neighbours takes from it, the edge of the volume being outside.
Both masks are cut to the box that holds them first; no distance reaches beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import edt
import numpy as np
from scipy.ndimage import binary_erosion

PERCENTILE = 95
SLACK = 1e-5  # relative; distances are float32, and a tolerance of two voxels must hold what lies two voxels away


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm between two surfaces that both exist.

    Attributes:
        from_prediction: Of every surface voxel of the prediction to the nearest one of the truth.
        from_truth: The other way round.
    """

    from_prediction: np.ndarray
    from_truth: np.ndarray

    @classmethod
    def between(cls, prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> Self | None:
        """Measures two masks of one class.

        Args:
            prediction: Boolean, `[X, Y, Z]`.
            truth: Boolean, on the same grid.
            spacing: Edge lengths of a voxel in mm, along the array's axes.

        Returns:
            None where either mask is empty: there is no surface to measure from.
        """
        box = box_of(prediction | truth)
        if box is None:
            return None
        ours, theirs = surface(prediction[box]), surface(truth[box])
        if not ours.any() or not theirs.any():
            return None
        return cls(_distance_to(theirs, spacing)[ours], _distance_to(ours, spacing)[theirs])

    @property
    def hd95(self) -> float:
        """The greater of both directions' 95th percentiles, in mm, as MONAI defines it."""
        return max(float(np.percentile(each, PERCENTILE)) for each in (self.from_prediction, self.from_truth))

    def nsd(self, tolerance: float) -> float:
        """Share of both surfaces that lies within `tolerance` mm of the other one, 0..1.

        Nikolov et al., JMIR 2021, with surface voxels counted, as MONAI does, instead of areas weighed.
        """
        limit = tolerance * (1 + SLACK)
        near = sum(np.count_nonzero(each <= limit) for each in (self.from_prediction, self.from_truth))
        return near / (self.from_prediction.size + self.from_truth.size)


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a boolean mask that touch what is outside, a boolean mask."""
    return np.asarray(mask & ~binary_erosion(mask))


def box_of(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a boolean mask; None where it is empty."""
    box = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not held.size:
            return None
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)


def _distance_to(voxels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance in mm of every voxel of the box to the nearest of those, float32."""
    return np.asarray(edt.edt(np.ascontiguousarray(~voxels), anisotropy=spacing, black_border=False, parallel=1))
