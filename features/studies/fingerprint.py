"""What the training cases of a study are like: sizes, spacings, intensities and classes. No other case is opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dropgen.errors import StudyError, VolumeError
from dropgen.features.studies import geometry
from dropgen.features.studies.prepare import require_one_grid
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import Volume, read_mask, read_volume

SAMPLES = 10_000  # foreground voxels per case that stand for its intensities
PERCENTILES = (0.5, 50.0, 99.5)
UNNAMED = "unnamed"  # a modality that the source does not tell
ML = 1000  # cubic millimetres


@dataclass(frozen=True)
class Intensities:
    """Raw values of all training cases of one modality, or of one channel.

    Attributes:
        cases: How many there are.
        low: Least value of any voxel.
        high: Greatest value of any voxel.
        foreground: 0.5th, 50th and 99.5th percentile of the voxels that any class covers, each case alike in weight.
        stretch: Median over cases of how many times wider the range of all voxels is than that between their 0.5th
            and 99.5th percentile: what outliers would cost under `minmax`.
    """

    cases: int
    low: float
    high: float
    foreground: tuple[float, float, float] | None
    stretch: float


@dataclass(frozen=True)
class ClassVolumes:
    """How large one label value is in the training cases that have it, in ml.

    Attributes:
        cases: How many have it.
    """

    cases: int
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class Fingerprint:
    """Everything that spacing, crop and intensity rule are planned from.

    Attributes:
        spacings: [N, 3] mm, RAS axes.
        shapes: [N, 3] voxels, RAS axes.
        inner_shapes: [N, 3] voxels of the smallest box that holds every voxel that is not 0 in some channel, as
            nnU-Net measures.
        intensities: By modality, or by channel where images have several.
        classes: By label value, without 0.
    """

    spacings: np.ndarray
    shapes: np.ndarray
    inner_shapes: np.ndarray
    intensities: dict[str, Intensities]
    classes: dict[int, ClassVolumes]


def take_fingerprint(study: Study, on_case: Callable[[Case], None] = lambda case: None) -> Fingerprint:
    """Opens every training case of a study, one at a time.

    Args:
        study: Its spacing, crop and intensity rule are not looked at.
        on_case: Called after each case, for a progress bar.

    Raises:
        StudyError: Cases cannot be read, or a label is not on its image's grid; names all of them.
    """
    cases = study.split("train")
    spacings: list[np.ndarray] = []
    shapes: list[tuple[int, ...]] = []
    inner: list[tuple[int, ...]] = []
    problems: list[str] = []
    values: dict[str, list[_Values]] = defaultdict(list)
    volumes: dict[int, list[float]] = defaultdict(list)
    generator = np.random.default_rng(0)
    for case in cases:
        try:
            channels, mask = _read(case, study)
        except VolumeError as error:
            problems.append(f"case {case.id}: {error}")
            continue
        image = channels[0]
        shape, affine = geometry.ras_grid(image.array.shape, image.affine)
        spacing = geometry.spacing_of(affine)
        spacings.append(spacing)
        shapes.append(shape)
        filled = np.logical_or.reduce([channel.array != 0 for channel in channels])
        inner.append(geometry.ras_grid(_inner_shape(filled), image.affine)[0])
        for name, channel in zip(study.channels or (case.modality or UNNAMED,), channels, strict=True):
            values[name].append(_Values.of(channel.array, mask.array, generator))
        for value, voxels in zip(*np.unique(mask.array, return_counts=True), strict=True):
            if value > 0:
                volumes[int(value)].append(float(voxels * np.prod(spacing)) / ML)
        on_case(case)
    if problems:
        raise StudyError(f"study {study.name}: {len(problems)} of {len(cases)} training cases are broken:", problems)
    return Fingerprint(
        spacings=np.array(spacings),
        shapes=np.array(shapes),
        inner_shapes=np.array(inner),
        intensities={name: _pooled(values[name]) for name in study.channels or sorted(values)},
        classes={
            value: ClassVolumes(len(found), min(found), float(np.median(found)), max(found))
            for value, found in sorted(volumes.items())
        },
    )


@dataclass(frozen=True)
class _Values:
    """Of one case: its extremes, how far they stretch its range, and some voxels of its foreground."""

    low: float
    high: float
    stretch: float
    foreground: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> _Values:
        low, high = float(image.min()), float(image.max())
        inner_low, _, inner_high = (float(value) for value in np.percentile(image, PERCENTILES))
        inside = image[mask > 0]
        # As nnU-Net draws them: with replacement, so that a case with a small foreground counts as much as another.
        drawn = generator.choice(inside, SAMPLES) if inside.size else inside
        return cls(low, high, (high - low) / (inner_high - inner_low) if inner_high > inner_low else 1.0, drawn)


def _pooled(found: list[_Values]) -> Intensities:
    foreground = np.concatenate([one.foreground for one in found])
    percentiles = [float(value) for value in np.percentile(foreground, PERCENTILES)] if foreground.size else None
    return Intensities(
        cases=len(found),
        low=min(one.low for one in found),
        high=max(one.high for one in found),
        foreground=None if percentiles is None else (percentiles[0], percentiles[1], percentiles[2]),
        stretch=float(np.median([one.stretch for one in found])),
    )


def _read(case: Case, study: Study) -> tuple[tuple[Volume, ...], Volume]:
    """The channels of the image, and the mask, in which ignored voxels are background."""
    assert case.label is not None  # a study without it was refused when it was loaded
    channels, mask = tuple(map(read_volume, case.images)), read_mask(case.label)
    require_one_grid(channels, study.channels)
    if difference := geometry.grid_difference(mask, channels[0].array.shape, channels[0].affine):
        raise VolumeError(f"label is not on the image's grid: {difference}")
    return channels, (mask if study.ignore is None else Volume(mask.array * (mask.array != study.ignore), mask.affine))


def _inner_shape(filled: np.ndarray) -> tuple[int, ...]:
    """Size of the box around all voxels that are filled, in file order; of the whole volume where there are none."""
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(filled.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(int(hit[-1] - hit[0] + 1) if hit.size else filled.shape[axis])
    return tuple(spans)
