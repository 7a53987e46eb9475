"""A multi-domain study that the project makes itself: ellipsoids and tubes under intensity shifts.

Intensity is the tempting cue: inside the source domain it alone gives every class away. Shape and edges
are the stable cue: they are drawn by the same generator in every domain.
"""

from __future__ import annotations

import csv
import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt, gaussian_filter, zoom

from dropgen.errors import StudyError
from dropgen.features.studies.volume import write_volume
from dropgen.manifest import digest, read_json, write_json

PHANTOM_VERSION = 1
CLASSES = ("background", "ellipsoid", "tube")
AIR, BODY, DISTRACTOR, ELLIPSOID, TUBE = range(5)
LABEL_OF_TISSUE = np.array([0, 0, 0, 1, 2], np.uint8)
SPLIT_FOLDERS = {"train": ("imagesTr", "labelsTr"), "val": ("imagesVal", "labelsVal"), "test": ("imagesTs", "labelsTs")}
FULL_SCALE = 1000  # stored int16 value of unit intensity 1
MAX_TRIES = 200
GAP = 2  # voxels of body between any two shapes


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that decides what the study looks like; lengths in voxels of 1 mm, intensities in [0, 1].

    Attributes:
        levels: Source intensity of air, body, distractor, ellipsoid, tube.
        remapped: The same tissues' intensities in the domain `remapped`.
        jitter: SD of a subject's tissue levels around `levels`.
        texture: SD of the smooth texture inside the body.
        noise: SD of the voxel noise of every image.
        separation: Least distance that a validation curve keeps between tissue levels.
        heavy_noise, zoom: Extra noise and resolution (1 = full) of the domain `noisy`.
        bias: Log of the ratio between the brightest and the darkest place of the domain `biased`.
    """

    size: int = 36
    crop: int = 24
    train_subjects: int = 12
    val_subjects: int = 6
    test_subjects: int = 4
    ellipsoids: int = 1
    tubes: int = 1
    distractors: int = 2
    ellipsoid_radius: tuple[float, float] = (6.0, 8.0)
    tube_radius: tuple[float, float] = (2.8, 3.5)
    distractor_radius: tuple[float, float] = (2.0, 3.0)
    levels: tuple[float, ...] = (0.0, 0.4, 0.2, 0.95, 0.7)
    remapped: tuple[float, ...] = (0.0, 0.65, 0.95, 0.4, 0.2)
    jitter: float = 0.015
    texture: float = 0.02
    noise: float = 0.015
    separation: float = 0.12
    heavy_noise: float = 0.08
    zoom: float = 0.5
    bias: float = 1.8


Paint = Callable[[np.ndarray, np.random.Generator, PhantomSpec], np.ndarray]
Draw = Callable[[np.ndarray], np.ndarray]  # centre [3] -> boolean shape [X, Y, Z]


def make_phantom_study(folder: Path, seed: int = 0, spec: PhantomSpec | None = None) -> Path:
    """Writes the study as an nnU-Net raw folder with a manifest.csv beside it.

    Nothing is written when the folder already holds the completed study of the same seed and parameters;
    the phantom of another seed or of an interrupted run is replaced.

    Args:
        folder: Empty or missing, or the folder of an earlier phantom.
        seed: The same seed gives the same arrays.
        spec: Parameters of the generator.

    Returns:
        The path of `study.yaml`.

    Raises:
        StudyError: The folder holds something else.
    """
    spec = spec or PhantomSpec()
    key = digest([PHANTOM_VERSION, seed, asdict(spec)])
    record = folder / "phantom.json"
    study = folder / "study.yaml"
    if read_json(record) == {"key": key, "complete": True}:
        return study
    if folder.exists() and any(folder.iterdir()) and not record.exists():
        raise StudyError(f"{folder} holds files that are no phantom study; name an empty folder")
    write_json(record, {"key": key, "complete": False})
    for name in itertools.chain.from_iterable(SPLIT_FOLDERS.values()):
        shutil.rmtree(folder / name, ignore_errors=True)
    _write_study(folder, study, seed, spec)
    write_json(record, {"key": key, "complete": True})
    return study


def _write_study(folder: Path, study: Path, seed: int, spec: PhantomSpec) -> None:
    # One training subject is stored LPS and one inverted subject with permuted axes.
    groups: list[tuple[str, str, int, Paint, dict[int, str]]] = [
        ("train", "source", spec.train_subjects, paint_source, {1: "LPS"}),
        ("val", "curves", spec.val_subjects, paint_curves, {}),
        ("test", "source", spec.test_subjects, paint_source, {}),
        ("test", "inverted", spec.test_subjects, paint_inverted, {0: "SLA"}),
        ("test", "remapped", spec.test_subjects, paint_remapped, {}),
        ("test", "noisy", spec.test_subjects, paint_noisy, {}),
        ("test", "biased", spec.test_subjects, paint_biased, {}),
    ]
    rows = []
    numbers = itertools.count(1)
    for split, domain, subjects, paint, storage in groups:
        images, labels = SPLIT_FOLDERS[split]
        for index in range(subjects):
            number = next(numbers)
            generator = np.random.default_rng([seed, number])
            tissue = draw_tissue(generator, spec)
            unit = np.clip(paint(tissue, generator, spec), 0, 1)
            subject = f"s{number:03d}"
            case = f"{subject}_{domain}"
            row = {"image": f"{images}/{case}_0000.nii.gz", "label": f"{labels}/{case}.nii.gz", "split": split}
            rows.append(row | {"subject": subject, "domain": domain, "id": case})
            codes = storage.get(index, "RAS")
            _store(folder / row["image"], np.rint(unit * FULL_SCALE).astype(np.int16), codes)
            _store(folder / row["label"], LABEL_OF_TISSUE[tissue], codes)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "phantom"},
            "labels": {name: value for value, name in enumerate(CLASSES)},
            "numTraining": spec.train_subjects,
            "file_ending": ".nii.gz",
        },
    )
    description = {
        "name": "phantom", "source": ".", "classes": list(CLASSES), "spacing": [1.0, 1.0, 1.0], "crop": [spec.crop] * 3,
        "intensity": "minmax", "orientation_augmentation": True,
    }  # fmt: skip
    study.write_text(yaml.safe_dump(description, sort_keys=False))


def _store(path: Path, ras: np.ndarray, codes: str) -> None:
    """Writes a RAS array of 1 mm voxels centred on the world origin in the axis order `codes`."""
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(ras.shape) - 1) / 2
    target = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    write_volume(path, apply_orientation(ras, target), affine @ inv_ornt_aff(target, ras.shape))


def draw_tissue(generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Draws one anatomy: tissue codes uint8 [X, Y, Z] in RAS order."""
    size = spec.size
    grid_3xyz = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 3, indexing="ij"))
    semiaxes = generator.uniform(0.42, 0.48, 3) * size
    body = _ellipsoid((grid_3xyz - (size - 1) / 2) / semiaxes[:, None, None, None])
    tissue = np.where(body, BODY, AIR).astype(np.uint8)
    shapes: list[tuple[int, int, float, Draw]] = [
        (TUBE, spec.tubes, spec.tube_radius[1], lambda center: _random_tube(center, generator, spec)),
        (ELLIPSOID, spec.ellipsoids, spec.ellipsoid_radius[0],
         lambda center: _ellipsoid(_turned(grid_3xyz, center, spec.ellipsoid_radius, generator))),
        (DISTRACTOR, spec.distractors, spec.distractor_radius[1],
         lambda center: _box(_turned(grid_3xyz, center, spec.distractor_radius, generator))),
    ]  # fmt: skip
    for code, count, reach, draw in shapes:
        for _ in range(count):
            _place(tissue, code, reach, draw, generator)
    return tissue


def _place(tissue: np.ndarray, code: int, reach: float, draw: Draw, generator: np.random.Generator) -> None:
    """Paints one shape into the body, its centre at least `reach` voxels and itself `GAP` from all others.

    A crowded body simply holds one shape less: the spec's counts are upper bounds.
    """
    room = distance_transform_edt(tissue == BODY) - GAP
    centers = np.argwhere(room >= reach)
    for _ in range(MAX_TRIES if len(centers) else 0):
        shape = draw(centers[generator.integers(len(centers))])
        if (room[shape] > 0).all():
            tissue[shape] = code
            return


def _random_tube(center: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """A tube around a quadratic Bezier curve, between 0.5 and 0.8 volume edges long."""
    reach = _rotation(generator)[0] * generator.uniform(0.25, 0.4) * spec.size
    bend = center + generator.normal(0, 0.12, 3) * spec.size
    t = np.linspace(0, 1, 2 * spec.size)[:, None]
    curve = (1 - t) ** 2 * (center - reach) + 2 * t * (1 - t) * bend + t**2 * (center + reach)
    radius = generator.uniform(*spec.tube_radius)
    cube = np.argwhere(np.ones([2 * int(np.ceil(radius)) + 1] * 3)) - int(np.ceil(radius))
    voxels = (np.rint(curve).astype(int)[:, None] + cube).reshape(-1, 3)
    near = ((voxels - np.repeat(curve, len(cube), axis=0)) ** 2).sum(1) <= radius**2
    inside = np.zeros([spec.size] * 3, bool)
    inside[tuple(np.clip(voxels[near], 0, spec.size - 1).T)] = True
    return inside


def _ellipsoid(local_3xyz: np.ndarray) -> np.ndarray:
    return np.asarray((local_3xyz**2).sum(0) <= 1)


def _box(local_3xyz: np.ndarray) -> np.ndarray:
    return np.asarray((np.abs(local_3xyz) <= 1).all(0))


def _turned(
    grid_3xyz: np.ndarray, center: np.ndarray, radius: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """Coordinates [3, X, Y, Z] in a randomly turned frame, in units of three radii drawn from `radius`."""
    axes = _rotation(generator) / generator.uniform(*radius, 3)[:, None]
    return np.tensordot(axes, grid_3xyz - center[:, None, None, None], 1)


def _rotation(generator: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    return np.asarray(q)


def paint_source(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Unit intensities [X, Y, Z] of the source domain."""
    return _noisy(_clean(tissue, spec.levels, generator, spec), spec.noise, generator)


def paint_inverted(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Domain (i): one minus the source intensity."""
    return 1 - paint_source(tissue, generator, spec)


def paint_remapped(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Domain (ii): the same edges between tissues whose intensities were dealt anew."""
    return _noisy(_clean(tissue, spec.remapped, generator, spec), spec.noise, generator)


def paint_noisy(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Domain (iii): heavy noise, then lower resolution."""
    clean = _clean(tissue, spec.levels, generator, spec)
    coarse = _noisy(zoom(clean, spec.zoom, order=1, grid_mode=True, mode="nearest"), spec.heavy_noise, generator)
    return np.asarray(zoom(coarse, np.divide(clean.shape, coarse.shape), order=1, grid_mode=True, mode="nearest"))


def paint_biased(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """Domain (iv): the source times a smooth field that falls from 1 to exp(-bias) within the body."""
    field = _smooth_field(tissue.shape, sigma=spec.size / 5, generator=generator)
    inside = field[tissue != AIR]
    fall = np.clip((field - inside.min()) / np.ptp(inside), 0, 1)
    return _noisy(_clean(tissue, spec.levels, generator, spec) * np.exp(-spec.bias * fall), spec.noise, generator)


def paint_curves(tissue: np.ndarray, generator: np.random.Generator, spec: PhantomSpec) -> np.ndarray:
    """The validation domain: the source through one random smooth intensity curve."""
    clean = _clean(tissue, spec.levels, generator, spec)
    return _noisy(np.clip(random_curve(generator, spec)(clean), 0, 1), spec.noise, generator)


def random_curve(generator: np.random.Generator, spec: PhantomSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Draws a smooth curve on [0, 1] that keeps the tissues apart and is none of the test shifts.

    The order in which it puts the tissues is neither the source's, nor its reverse, nor that of the
    domain `remapped`.
    """
    levels = np.array(spec.levels)
    order = tuple(np.argsort(levels))
    taken = {order, order[::-1], tuple(np.argsort(spec.remapped))}
    knots = np.linspace(0, 1, 5)
    for _ in range(100 * MAX_TRIES):
        curve = CubicSpline(knots, generator.uniform(0, 1, knots.size))
        mapped = curve(levels)
        apart = np.diff(np.sort(mapped)).min() >= spec.separation
        if apart and mapped.min() >= 0 and mapped.max() <= 1 and tuple(np.argsort(mapped)) not in taken:
            return lambda unit: np.asarray(curve(unit))
    raise StudyError(f"no curve keeps {levels.size} tissues {spec.separation} apart; lower the phantom's separation")


def _clean(
    tissue: np.ndarray, levels: tuple[float, ...], generator: np.random.Generator, spec: PhantomSpec
) -> np.ndarray:
    level = np.array(levels) + generator.normal(0, spec.jitter, len(levels)) * (np.arange(len(levels)) != AIR)
    texture = _smooth_field(tissue.shape, sigma=1.5, generator=generator) * spec.texture * (tissue != AIR)
    # A point spread of half a voxel gives edges their partial volume.
    return np.asarray(np.clip(gaussian_filter(level[tissue], 0.5) + texture, 0, 1))


def _smooth_field(shape: tuple[int, ...], sigma: float, generator: np.random.Generator) -> np.ndarray:
    """A random field of mean 0 and SD 1 with the correlation length `sigma` in voxels."""
    field = gaussian_filter(generator.normal(size=shape), sigma, mode="nearest")
    return np.asarray((field - field.mean()) / field.std())


def _noisy(unit: np.ndarray, sd: float, generator: np.random.Generator) -> np.ndarray:
    return np.asarray(unit + generator.normal(0, sd, unit.shape))
