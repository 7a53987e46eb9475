"""Times a study from its files to its masks in several ways, against the model alone over volumes that are ready."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dropgen.features.cluster import connect  # isort: skip  (first: it makes settings that ray reads on import)
import numpy as np
import ray
import torch

from dropgen.config import Network
from dropgen.errors import ConfigError, StoreError
from dropgen.features.bench.store import make_features
from dropgen.features.bench.timing import LEAST_REPEATS, require_repeats, rounds
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import write_volume
from dropgen.platform.bench.predict import FULL_SCALE, SMALL
from dropgen.platform.bench.predict_model import image_alone
from dropgen.serving.backend import LocalModel, Recipe
from dropgen.serving.bench.ray_data import segment_by_ray_data
from dropgen.serving.cases import Scan, find_cases
from dropgen.serving.crew import Crew, cores, work_on_ray
from dropgen.serving.journal import Journal
from dropgen.serving.ledger import Outcome
from dropgen.serving.line import Done, Line, Task
from dropgen.serving.models import Model
from dropgen.serving.threads import IN_FLIGHT, effort_of

READY, SERIAL, CREW, DATA = "ready tensors", "one at a time", "in flight", "Ray Data"
WAYS = (READY, SERIAL, CREW, DATA)


@dataclass(frozen=True)
class SegmentBench:
    """What is segmented, and how often.

    Attributes:
        shape: Voxels of a volume, [X, Y, Z], 1 mm.
        scans: Of the study.
        crop: Edge of a window, voxels; windows overlap by half.
        classes: K.
        network: So small that the model takes about as long as reading and writing, as it does on an accelerator.
        repeats: Rounds, at least 5.
    """

    shape: tuple[int, ...] = (128, 128, 128)
    scans: int = 12
    crop: int = 64
    classes: int = 3
    network: Network = SMALL
    repeats: int = LEAST_REPEATS

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"--shape = {self.shape}: a volume has three axes, for example 128,128,128")
        if self.scans < 2:
            raise ConfigError(f"--scans = {self.scans}: a model has a time between scans from 2 on")


@dataclass
class Way:
    """One way to segment the study.

    Attributes:
        seconds: From the first scan in the model to the last one out, one value a round.
        busy: Share of them with a scan in the model, one value a round.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def bench_segment(
    spec: SegmentBench, folder: Path, on_run: Callable[[str], None] = lambda way: None
) -> list[dict[str, Any]]:
    """Writes a study under `folder` and segments it once a round in every way, in a new order each.

    The model has all cores but one, which is left for reading and writing, in all ways. Its processes are started
    outside of the time, as are the first scan's reading and the last one's writing.

    Returns:
        Rows `bench, way, in_flight, scans, median_s, min_s, max_s, throughput, model_busy, scans_per_second, repeats,
        raw_s, raw_busy`; `throughput` is that of `ready tensors` = 1, `model_busy` a median.

    Raises:
        StoreError: Two ways did not give the same masks.
        ResourceError: The disk is full or the folder cannot be written.
    """
    source, recipe = _write_study(spec, folder)
    ways = [Way(name) for name in WAYS]
    truth: dict[str, str] | None = None
    with connect(cpus=2):
        for order in rounds(ways, spec.repeats, np.random.default_rng(0)):
            for way in order:
                masks = _run(way, source, recipe, folder / "masks")
                if masks:
                    if truth is not None and masks != truth:
                        raise StoreError("two ways to segment gave other masks; no time of this run counts")
                    truth = masks
                on_run(way.name)
    return [_row(way, ways[0], spec) for way in ways]


class Ready:
    """The model over volumes that lie prepared in its own process.

    Args:
        recipe: Which model.
        threads: CPU threads of it.
    """

    def __init__(self, recipe: Recipe, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = LocalModel(recipe)

    def run(self, scans: Sequence[Scan]) -> list[tuple[float, float]]:
        """When each was in the model."""
        preparation = self._model.segmenter.spec.preparation
        ready = [prepare(scan.load().channels, preparation) for scan in scans]
        return [self._model.in_model(prepared)[2] for prepared in ready]


def _run(way: Way, source: Path, recipe: Recipe, target: Path) -> dict[str, str]:
    """One run into an empty folder, which is gone afterwards; returns the hashes of its masks."""
    scans = find_cases(source, target).scans
    target.mkdir()
    model = Model.of(recipe.bundle, "bench")
    line = Line(target, model, Journal(target / "audit.jsonl", durable=True), "bench")
    threads, dones = max(1, cores() - 1), list[Done]()
    if way.name == READY:
        actor: Any = ray.remote(Ready)
        gpus = 1 if torch.cuda.is_available() else 0
        spans = ray.get(actor.options(num_cpus=1, num_gpus=gpus).remote(recipe, threads).run.remote(scans))
        dones = [
            Done(Task(scan), Outcome(scan.case, scan.file, "done"), None, span)
            for scan, span in zip(scans, spans, strict=True)
        ]
    elif way.name == DATA:
        dones = segment_by_ray_data(scans, line, recipe, threads)
    else:
        crew = Crew(1, 1 if way.name == SERIAL else IN_FLIGHT, threads=threads)
        work_on_ray([Task(scan) for scan in scans], line, recipe, crew, dones.append, lambda _: None)
    effort = effort_of(dones)
    assert effort.busy is not None
    way.seconds.append(effort.seconds)
    way.busy.append(effort.busy)
    masks = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.glob("*.nii.gz")}
    shutil.rmtree(target)
    return masks


def _row(way: Way, ready: Way, spec: SegmentBench) -> dict[str, Any]:
    seconds = median(way.seconds)
    return {
        "bench": "segment",
        "way": way.name,
        "in_flight": {SERIAL: 1, CREW: IN_FLIGHT}.get(way.name),
        "scans": spec.scans,
        "median_s": seconds,
        "min_s": min(way.seconds),
        "max_s": max(way.seconds),
        "throughput": median(ready.seconds) / seconds,
        "model_busy": median(way.busy),
        "scans_per_second": spec.scans / seconds,
        "repeats": len(way.seconds),
        "raw_s": way.seconds,
        "raw_busy": way.busy,
    }


def _write_study(spec: SegmentBench, folder: Path) -> tuple[Path, Recipe]:
    """Smooth random fields with noise as compressed int16 NIfTI, and an untrained model."""
    source = folder / "study"
    for number in range(spec.scans):
        field_xyz = make_features(1, spec.shape, seed=number)[0].astype(np.float32)
        write_volume(source / f"scan{number:04d}.nii.gz", np.rint(FULL_SCALE * field_xyz).astype(np.int16), np.eye(4))
    image_alone(spec.network, spec.classes, spec.crop).save(folder / "bundle")
    return source, Recipe(folder / "bundle")
