"""A study whose held-out cases come back under intensity shifts: a domain shift where only one site is there.

Shapes, labels and grids stay as they are. METHODS: gamma and bias follow the DropGen paper's robustness analysis.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from monai.transforms import RandBiasField, RandSimulateLowResolution

from dropgen.errors import StudyError, closest
from dropgen.features.studies.intensity import scale_intensity
from dropgen.features.studies.sources import CHANNEL, IMAGE, MANIFEST, Row, row_of
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import read_volume, write_volume
from dropgen.manifest import digest, write_bytes

SPLIT_SEED = 123  # never the seed of a run: everybody who shifts a study gets the same subjects
GAMMA = 0.9  # log of the exponent, the largest of the analysis
BIAS = 0.5  # largest coefficient of the field, the largest of the analysis
NOISE = 0.1  # SD in unit scale, the largest that training adds
ZOOM = 0.5  # of the resolution, which training lowers to between 0.25 and 1

# From min-max scaled intensities [X, Y, Z] to others; what leaves [0, 1] is clipped.
Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def gamma(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """x^g, g = exp(0.9) or exp(-0.9)."""
    return np.asarray(unit ** np.exp(generator.choice((-GAMMA, GAMMA))))


def inverted(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """1 - x."""
    return np.asarray(1 - unit)


def biased(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """x exp(field), a sum of Legendre products up to degree 3 with coefficients U(0, 0.5), scaled back to [0, 1]."""
    field = RandBiasField(prob=1.0, degree=3, coeff_range=(0.0, BIAS))
    field.set_random_state(seed=int(generator.integers(2**31)))
    changed = np.asarray(field(torch.from_numpy(unit[None])))[0]
    return np.asarray(changed / max(float(changed.max()), 1e-6))


def noisy(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """x plus normal noise of SD 0.1."""
    return np.asarray(unit + generator.normal(0, NOISE, unit.shape))


def coarse(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """x at half its resolution, back on its own grid."""
    lower = RandSimulateLowResolution(prob=1.0, zoom_range=(ZOOM, ZOOM))
    return np.asarray(lower(torch.from_numpy(unit[None]))[0])


SHIFTS: dict[str, Shift] = {shift.__name__: shift for shift in (gamma, inverted, biased, noisy, coarse)}


@dataclass(frozen=True)
class Copy:
    """One held-out case under one shift; `shift` is None where it stays as it is."""

    case: Case
    shift: str | None


def choose_shifts(names: str) -> tuple[str, ...]:
    """The shifts that `gamma,inverted` names; "all" names every one.

    Raises:
        StudyError: One is unknown.
    """
    chosen = tuple(SHIFTS) if names == "all" else tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in SHIFTS:
            raise StudyError(f"--shifts: unknown shift '{name}'{closest(name, SHIFTS)}")
    return chosen


def shift_study(
    study: Study, folder: Path, shifts: Sequence[str], on_copy: Callable[[Copy, int], None] = lambda copy, total: None
) -> Path:
    """Writes a study with the same training cases and, of every other case, the original and one copy per shift.

    Every channel of an image is shifted by itself, with draws of its own.

    A copy is a case of its own in the domain named after its shift; its subject, its label and its range of
    intensities stay. Where nobody is held out for testing, every second validation subject becomes a test subject, in
    the order of a permutation that is the same for everybody. A copy that is there already is not made again.

    Args:
        study: Names files that exist.
        folder: Gets `study.yaml`, `manifest.csv` and `images/`.
        shifts: Names out of `SHIFTS`.
        on_copy: Called before each copy, with the number of all of them.

    Returns:
        The path of `study.yaml`.

    Raises:
        StudyError: No case is held out.
        VolumeError: An image cannot be read.
    """
    copies = [Copy(case, shift) for case in _held_out(study) for shift in (None, *shifts)]
    if not copies:
        raise StudyError(f"study {study.name}: no case is held out of training; give some the split val")
    columns = tuple(CHANNEL + name for name in study.channels) or (IMAGE,)
    rows = [_row(case, columns, folder) for case in study.split("train")]
    for copy in copies:
        on_copy(copy, len(copies))
        rows.append(_row(_written(copy, folder), columns, folder))
    untold = any(copy.case.domain in study.placeholder_spacing for copy in copies)
    description = {
        "name": f"{study.name}-shifted", "source": MANIFEST, **study.labelling.to_yaml(),
        "spacing": list(study.spacing), "crop": list(study.crop),
        "intensity": study.intensity if isinstance(study.intensity, str) else dict(study.intensity),
        "orientation_augmentation": study.orientation_augmentation,
        "placeholder_spacing": [*study.placeholder_spacing, *(shifts if untold else ())],
        "tubular": list(study.tubular),
        "codes": {name: code.model_dump() for name, code in study.codes.items()},
    }  # fmt: skip
    with (folder / MANIFEST).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    path = folder / "study.yaml"
    write_bytes(path, yaml.safe_dump(description, sort_keys=False).encode())
    return path


def _held_out(study: Study) -> list[Case]:
    """Validation and test cases; without a test split, half of the validation subjects are turned into one."""
    validation, test = study.split("val"), study.split("test")
    if test:
        return [*validation, *test]
    subjects = sorted({case.subject for case in validation})
    np.random.default_rng(SPLIT_SEED).shuffle(subjects)
    moved = set(subjects[1::2])
    return [replace(case, split="test") if case.subject in moved else case for case in validation]


def _written(copy: Copy, folder: Path) -> Case:
    """The copy as a case of its own, whose images are there."""
    case = copy.case
    if copy.shift is None:
        return case
    generator = np.random.default_rng(int(digest([SPLIT_SEED, case.id, copy.shift])[:16], 16))
    marks = [""] if len(case.images) == 1 else [f"_{channel:04d}" for channel in range(len(case.images))]
    images = tuple(folder / "images" / f"{case.id}-{copy.shift}{mark}.nii.gz" for mark in marks)
    if not all(image.is_file() for image in images):
        for source, image in zip(case.images, images, strict=True):
            volume = read_volume(source)
            low, high = float(volume.array.min()), float(volume.array.max())
            unit = scale_intensity(volume.array, "minmax").unit
            shifted = np.clip(SHIFTS[copy.shift](unit, generator), 0, 1)
            write_volume(image, (low + shifted * (high - low)).astype(np.float32), volume.affine)
    return replace(case, id=f"{case.id}-{copy.shift}", domain=copy.shift, images=images)


def _row(case: Case, columns: Sequence[str], folder: Path) -> Row:
    def relative(path: Path | None) -> str:
        return "" if path is None else os.path.relpath(path, folder)

    return row_of(
        dict(zip(columns, map(relative, case.images), strict=True)), label=relative(case.label), split=case.split,
        subject=case.subject, domain=case.domain, modality=case.modality or "", id=case.id,
    )  # fmt: skip
