"""Times precomputing a study with one volume in flight per worker against several, on the same synthetic volumes."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dropgen.config import Component
from dropgen.errors import ConfigError, StoreError
from dropgen.features.bench.store import make_features
from dropgen.features.bench.timing import LEAST_REPEATS, Spread, require_repeats, rounds
from dropgen.features.cluster import connect
from dropgen.features.crew import IN_FLIGHT, efforts, extractor_busy, run_crew
from dropgen.features.extractors import build
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import FeatureStore
from dropgen.features.store.entry import read_commit
from dropgen.features.store.upkeep import everything
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import write_mask, write_volume
from dropgen.features.worker import Recipe
from dropgen.manifest import git_commit

EXTRACTOR = Component.of("mind")
DTYPE = "float16"
FULL_SCALE = 1000  # of the int16 that scanners write


@dataclass(frozen=True)
class PrecomputeBench:
    """What is computed, and how often.

    Attributes:
        shape: Voxels of a volume, [X, Y, Z].
        volumes: Cases of the study.
        workers: Numbers of worker processes to time.
        repeats: Rounds, at least 5.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    volumes: int = 8
    workers: tuple[int, ...] = (1, 2)
    repeats: int = LEAST_REPEATS

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if len(self.shape) != 3:
            raise ConfigError(f"--shape = {self.shape}: a volume has three axes, for example 128,128,128")
        if not self.workers or min(self.workers) < 1:
            raise ConfigError(f"--workers = {self.workers}: name numbers of processes, for example 1,2")


@dataclass
class Contender:
    """One way to precompute.

    Attributes:
        seconds: From the first case's begin to the last one's end, one value a round.
        busy: Share of the workers' time in their extractors, one value a round.
    """

    workers: int
    in_flight: int
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def bench_precompute(
    spec: PrecomputeBench, folder: Path, on_run: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Writes a study under `folder` and precomputes it once a round in every way, each time into an empty store.

    The start of the worker processes is not part of the time. The image files are in the page cache after the first
    round.

    Returns:
        Rows `bench, workers, in_flight, median_s, min_s, max_s, ratio_to_serial, volumes_per_second, extractor_busy,
        repeats, raw_s, raw_busy`; serial is one volume in flight with as many workers, `extractor_busy` a median.

    Raises:
        StoreError: Two ways did not store the same bytes.
        ResourceError: The disk is full or the folder cannot be written.
    """
    study = _write_study(spec, folder / "study")
    contenders = [Contender(workers, in_flight) for workers in spec.workers for in_flight in (1, IN_FLIGHT)]
    truth: dict[Any, Any] | None = None
    with connect(cpus=max(spec.workers)):
        for order in rounds(contenders, spec.repeats, np.random.default_rng(0)):
            for contender in order:
                stored = _run(contender, study, FeatureStore(folder / "store"))
                if truth is not None and stored != truth:
                    raise StoreError("two ways to precompute stored other bytes; no time of this run counts")
                truth = stored
                on_run()
    return [_row(contender, contenders, spec) for contender in contenders]


def _run(contender: Contender, study: Study, store: FeatureStore) -> dict[Any, Any]:
    """One run into an empty store, which is gone afterwards; returns the hashes of all that it stored."""
    works = missing_work(study, StudyIndex.of(study, build(EXTRACTOR), DTYPE), store)
    recipe = Recipe(store.folder, study, EXTRACTOR, DTYPE, git_commit())
    outcomes, problems = run_crew(works, recipe, contender.workers, contender.in_flight)
    if problems:
        raise StoreError(problems[0])
    contender.seconds.append(
        max(outcome.ended for outcome in outcomes) - min(outcome.began for outcome in outcomes)
    )  # one clock: all workers are on this machine
    contender.busy.append(extractor_busy(efforts(outcomes)) or 0.0)
    stored = {entry: read_commit(store.path(*entry))["files"] for entry in everything(store)}
    shutil.rmtree(store.folder)
    return stored


def _row(contender: Contender, contenders: list[Contender], spec: PrecomputeBench) -> dict[str, Any]:
    spread = Spread.of(contender.seconds)
    (serial,) = (other for other in contenders if (other.workers, other.in_flight) == (contender.workers, 1))
    return {
        "bench": "precompute",
        "workers": contender.workers,
        "in_flight": contender.in_flight,
        "median_s": spread.median,
        "min_s": spread.low,
        "max_s": spread.high,
        "ratio_to_serial": spread.median / Spread.of(serial.seconds).median,
        "volumes_per_second": spec.volumes / spread.median,
        "extractor_busy": Spread.of(contender.busy).median,
        "repeats": len(contender.seconds),
        "raw_s": contender.seconds,
        "raw_busy": contender.busy,
    }


def _write_study(spec: PrecomputeBench, folder: Path) -> Study:
    """Smooth random fields with noise as compressed int16 NIfTI files, and where they are positive as labels."""
    rows = []
    for number in range(spec.volumes):
        field_xyz = make_features(1, spec.shape, seed=number)[0].astype(np.float32)
        row = {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "split": "train"}
        write_volume(folder / row["image"], np.rint(FULL_SCALE * field_xyz).astype(np.int16), np.eye(4))
        write_mask(folder / row["label"], field_xyz > 0, np.eye(4))
        rows.append(row)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    settings = {
        "name": "bench", "source": "manifest.csv", "classes": ["background", "positive"], "spacing": [1, 1, 1],
        "crop": [1, 1, 1], "intensity": "minmax", "orientation_augmentation": False,
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_study(path, folder)
