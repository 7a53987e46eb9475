"""Times HD95 and NSD of a whole label map on one core, against MONAI's, class by class."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from dropgen.errors import ConfigError, StoreError
from dropgen.features.bench.timing import LEAST_REPEATS, Spread, require_repeats, rounds, timed
from dropgen.platform.evaluation.surface import SurfaceDistances

LAYOUTS = ("compact", "scattered")
TOLERANCE = 2.0  # mm
SPACING = (0.8, 0.8, 1.5)  # mm, as abdominal CT
AGREEMENT = 1e-4  # mm, and share; both keep distances in float32

Labels = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class MetricsBench:
    """What is timed.

    Attributes:
        shape: Voxels of the label map.
        classes: Foreground classes, each an ellipsoid about a third of the volume long.
        repeats: Rounds.

    Raises:
        ConfigError: There are too few repeats, or the shape has not three axes of at least 16 voxels.
    """

    shape: tuple[int, ...] = (256, 256, 160)
    classes: int = 8
    repeats: int = LEAST_REPEATS
    seed: int = 0

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if len(self.shape) != 3 or min(self.shape) < 16:
            raise ConfigError(f"--shape = {self.shape}: bench metrics needs three axes of at least 16 voxels")


def make_labels(spec: MetricsBench, layout: str) -> Labels:
    """A truth of ellipsoids, and the same with every one moved by a voxel or three and swollen: a fair prediction.

    Args:
        spec: The volume.
        layout: "compact", or "scattered": a stray voxel of every class lies in two opposite corners of the prediction,
            so that no box around a class is smaller than the volume.
    """
    generator = np.random.default_rng(spec.seed)
    grid = np.ogrid[tuple(slice(0, size) for size in spec.shape)]
    size = np.array(spec.shape)
    maps = np.zeros((2, *spec.shape), np.uint8)
    for label in range(1, spec.classes + 1):
        centre, radius = generator.uniform(0.25, 0.75, 3) * size, generator.uniform(0.1, 0.18, 3) * size
        moved = [(centre, radius), (centre + generator.uniform(1, 3, 3), radius * 1.04)]
        for target, (middle, half) in zip(maps, moved, strict=True):
            inside = sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, middle, half, strict=True)) <= 1
            target[inside] = label
    if layout == "scattered":
        labels = np.arange(1, spec.classes + 1)
        maps[1, : spec.classes, 0, 0] = maps[1, -spec.classes :, -1, -1] = labels
    return maps[0], maps[1]


def bench_metrics(spec: MetricsBench, layout: str, on_round: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Times both ways of measuring every class, side by side, on one thread.

    Returns:
        Rows `bench, contender, layout, median_s, min_s, max_s, ratio_to_monai, repeats, raw_s`.

    Raises:
        StoreError: The contenders did not measure the same.
    """
    truth, prediction = make_labels(spec, layout)
    contenders: dict[str, Score] = {"dropgen": _ours, "monai": _monai}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[tuple[float, float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for order in rounds(list(contenders), spec.repeats, np.random.default_rng(spec.seed)):
            for name in order:
                work = functools.partial(_score_all, contenders[name], prediction, truth, spec.classes)
                spent, found[name] = timed(work, time.perf_counter)
                seconds[name].append(spent)
            on_round()
    finally:
        torch.set_num_threads(threads)
    if not np.allclose(found["dropgen"], found["monai"], atol=AGREEMENT, equal_nan=True):
        raise StoreError(f"HD95 and NSD differ: {found['dropgen']} against MONAI's {found['monai']}; report this bug")
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    return [
        {
            "bench": "metrics", "contender": name, "layout": layout, "median_s": spread.median, "min_s": spread.low,
            "max_s": spread.high, "ratio_to_monai": spread.median / spreads["monai"].median, "repeats": spec.repeats,
            "raw_s": seconds[name],
        }
        for name, spread in spreads.items()
    ]  # fmt: skip


def _score_all(score: Score, prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[tuple[float, float]]:
    return [score(prediction == label, truth == label) for label in range(1, classes + 1)]


def _ours(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    distances = SurfaceDistances.between(prediction, truth, SPACING)
    return (np.nan, np.nan) if distances is None else (distances.hd95, distances.nsd(TOLERANCE))


def _monai(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    distance = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=SPACING)
    share = compute_surface_dice(one, other, [TOLERANCE], include_background=True, spacing=SPACING)
    return float(distance), float(share)
