"""The sample plan: which crop, geometry, channel mask and noise every slot of every step uses.

A pure function of (seed, step, slot). So resuming needs only the step, any number of workers sees
the same samples, and a channel mask is known before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dropgen.features.symmetry import IDENTITY, AxisSymmetry

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One training sample, described before it is read.

    Attributes:
        case: Case id.
        origin: First voxel of the crop in the prepared volume.
        size: Voxels that are read; the symmetry turns them into the study's crop.
        symmetry: Flips and quarter turns, exact.
        affine: 3x3 map from output to input directions about the crop's centre, or None.
        kept: Which input channels survive, bool `[in_channels]`.
        noise_seed: Seeds the intensity augmentation.
        strength: How strongly the method changes the sample, where it draws that per sample.
    """

    case: str
    origin: Shape
    size: Shape
    symmetry: AxisSymmetry
    affine: np.ndarray | None
    kept: np.ndarray
    noise_seed: int
    strength: float = 0.0

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The crop as slices of the prepared volume."""
        x, y, z = (slice(start, start + length) for start, length in zip(self.origin, self.size, strict=True))
        return (x, y, z)


@dataclass(frozen=True)
class SamplePlan:
    """Draws samples: cases uniformly with replacement, one random crop each.

    Attributes:
        seed: The run's seed.
        shapes: Prepared shape of every training case; each axis at least the crop's.
        crop: Voxels per axis of a training crop.
        draw: The method's `draw`, bound to the number of feature channels.
        orientation: Whether flips and quarter turns are drawn (off where left and right matter).
        affine: Whether rotations (up to 45 degrees), shears (0.2) and scalings (0.2) are drawn.
        probability: Chance of each random item.
    """

    seed: int
    shapes: Mapping[str, Shape]
    crop: Shape
    draw: Callable[[np.random.Generator], tuple[np.ndarray, float]]
    orientation: bool = True
    affine: bool = True
    probability: float = 0.33

    def sample(self, step: int, slot: int) -> Sample:
        """The sample of one slot of one global step."""
        generator = np.random.default_rng((self.seed, step, slot))
        case = sorted(self.shapes)[generator.integers(len(self.shapes))]
        symmetry = self._symmetry(generator) if self.orientation else IDENTITY
        size = self._size_before(symmetry)
        if any(have < want for have, want in zip(self.shapes[case], size, strict=True)):
            symmetry = AxisSymmetry(flips=symmetry.flips)
            size = self.crop
        x, y, z = (int(generator.integers(h - w + 1)) for h, w in zip(self.shapes[case], size, strict=True))
        matrix = self._affine(generator) if self.affine else None
        kept, strength = self.draw(generator)
        return Sample(case, (x, y, z), size, symmetry, matrix, kept, int(generator.integers(2**32)), strength)

    def _symmetry(self, generator: np.random.Generator) -> AxisSymmetry:
        """RandFlip on the first axis, RandAxisFlip on any, RandRotate90 in the first two axes' plane."""
        flips = [False, False, False]
        if generator.random() < self.probability:
            flips[0] = not flips[0]
        axis = int(generator.integers(3))
        if generator.random() < self.probability:
            flips[axis] = not flips[axis]
        turns = int(generator.integers(1, 4)) if generator.random() < self.probability else 0
        if turns >= 2:
            flips[0], flips[1] = not flips[0], not flips[1]
        if turns % 2:
            return AxisSymmetry((1, 0, 2), (not flips[0], flips[1], flips[2]))
        return AxisSymmetry((0, 1, 2), (flips[0], flips[1], flips[2]))

    def _size_before(self, symmetry: AxisSymmetry) -> Shape:
        """The size that the symmetry turns into the crop: quarter turns swap the first two axes."""
        return symmetry.of_shape(self.crop)

    def _affine(self, generator: np.random.Generator) -> np.ndarray | None:
        angles = generator.uniform(-np.pi / 4, np.pi / 4, 3)
        shears = generator.uniform(-0.2, 0.2, 6)
        scales = 1 + generator.uniform(-0.2, 0.2, 3)
        if generator.random() >= self.probability:
            return None
        return affine_map(angles, shears, scales)


def affine_map(angles: np.ndarray, shears: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The 3x3 map from output to input directions of a crop: turns about the three axes, then shears, then scales.

    Args:
        angles: `[3]`, in radians, about the first, second and third axis.
        shears: `[6]`, those above the diagonal first.
        scales: `[3]`, voxels of the input per voxel of the output, along each axis.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)], shear[np.tril_indices(3, -1)] = shears[:3], shears[3:]
    product: np.ndarray = matrix @ shear @ np.diag(scales)
    return product
