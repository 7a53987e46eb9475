"""What makes the masks of `dropgen segment`: a model in this process, or a running service."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dropgen import memory
from dropgen.config import Component
from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.volume import Volume, read_grid
from dropgen.platform.evaluation.memory import READING_BYTES, MemoryPlan, gib
from dropgen.platform.evaluation.uncertainty import MAPS, Uncertainty, extra_passes, predict_asked
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.adapted import adapt
from dropgen.serving.cases import Loaded, Scan
from dropgen.serving.client import Client
from dropgen.serving.models import Model, named_by
from dropgen.serving.quality import Segmented
from dropgen.serving.room import Room, plan_room, together

# The model's thread takes the interpreter again after every operation, and waits so long where another has it. With
# Python's 5 ms a study went at 0.90 of the model's own speed, with this at 1.00 (`dropgen bench segment`, two cores).
SWITCH_SECONDS = 0.0005

Read = Callable[[Scan], AbstractContextManager[Loaded]]
Segment = Callable[[Scan], AbstractContextManager[Segmented]]  # what a scan takes in memory is held for the block


class StoppedError(Exception):
    """The run was interrupted; what is in hand is dropped."""


@dataclass(frozen=True)
class Recipe:
    """What a process needs to open a model; sent to every worker once.

    Attributes:
        bundle: The model's folder.
        modality: Of scans of which neither manifest nor DICOM tag says one.
        uncertain: Whether the model also says how sure it is.
        adapt: A test-time method around it.
        stable_bundle: The second model of methods that need one.
    """

    bundle: Path
    modality: str | None = None
    uncertain: bool = False
    adapt: Component | None = None
    stable_bundle: Path | None = None


@contextlib.contextmanager
def read_here(scan: Scan) -> Iterator[Loaded]:
    """Reads a scan in this process: one of the user's own."""
    yield scan.load()


class LocalModel:
    """A model in this process, for several threads with a scan each.

    While one scan is in the model the others are read, prepared or written. A lock before the model is all the queue
    there is, so no more volumes are in memory than there are threads.

    Args:
        recipe: Which model.
        processes: How many share this machine's memory.
        stop: Once set, nobody waits for more than the windows that are in the network.
        read: How a scan is read.

    Raises:
        CheckpointError: The bundle is damaged.
        ConfigError: The test-time method is not meant for these models.
    """

    def __init__(
        self, recipe: Recipe, processes: int = 1, stop: threading.Event | None = None, read: Read = read_here
    ) -> None:
        self._recipe = recipe
        self._read = read
        self._stop = threading.Event() if stop is None else stop
        segmenter = Segmenter.load(recipe.bundle, "cuda" if torch.cuda.is_available() else "cpu")
        segmenter.network.register_forward_pre_hook(lambda *_: self._require_time())
        if recipe.adapt is not None:
            segmenter = adapt(segmenter, recipe.adapt, recipe.stable_bundle)
        self.segmenter = segmenter
        self._maps = MAPS if recipe.uncertain else 0
        self._turn = threading.Lock()
        sys.setswitchinterval(SWITCH_SECONDS)
        memory.one_arena()
        self._room = Room(segmenter, lambda: memory.available() // processes)

    @contextlib.contextmanager
    def segment(self, scan: Scan) -> Iterator[Segmented]:
        """Makes the mask of one scan.

        Raises:
            VolumeError: It is damaged, or its modality is missing or contradicts the tag.
            TooLargeError: It would not fit in memory.
            StoppedError: The run was interrupted.
        """
        with contextlib.ExitStack() as held:
            loaded = None
            if scan.series:  # its grid is known once its slices are in order
                with self._room.hold(_reading(scan), exact=False):
                    loaded = held.enter_context(self._read(scan))
            grid = read_grid(scan.paths[0]) if loaded is None else loaded.channels[0]
            held.enter_context(self._room.hold(self._plan(grid)))
            loaded = loaded or held.enter_context(self._read(scan))
            modality = _modality(self.segmenter, scan.modality or self._recipe.modality, loaded.tag)
            prepared = prepare(loaded.channels, self.segmenter.spec.preparation, modality)
            array, uncertainty, span = self.in_model(prepared)
            del prepared
            image = loaded.channels[0]
            yield Segmented(image, Volume(array, image.affine), uncertainty, loaded.slices, span)

    def in_model(self, prepared: Prepared) -> tuple[np.ndarray, Uncertainty | None, tuple[float, float]]:
        """The mask of a prepared volume on its native grid, how sure it is, and when it was in the model.

        Raises:
            StoppedError: The run was interrupted.
        """
        with self._turn:
            self._require_time()
            entered = time.monotonic()
            array, uncertainty = predict_asked(self.segmenter, prepared, self._recipe.uncertain)
            return array, uncertainty, (entered, time.monotonic())

    def about(self, scans: Iterable[Scan], in_flight: int) -> list[str]:
        """Says before the first scan is read what the NIfTI files that take most will take, and what maps cost."""
        told = []
        if self._recipe.uncertain:
            told.append(f"--uncertainty: {1 + extra_passes(self.segmenter)} passes over every volume instead of 1")
        plans = {}
        for scan in scans:
            if not scan.series:
                with contextlib.suppress(VolumeError, TooLargeError):  # its turn comes, with its reason
                    plans[scan.file] = self._plan(read_grid(scan.paths[0]))
        if plans:
            largest = sorted(plans, key=lambda name: plans[name].peak, reverse=True)
            most = together([plans[name] for name in largest[:in_flight]])
            free = gib(memory.available())
            told.append(f"memory: {largest[0]} takes most, {plans[largest[0]]}; {free} GiB are free")
            if in_flight > 1:
                told.append(
                    f"memory: {in_flight} volumes in flight take up to {gib(most)} GiB; fewer are, where less is free"
                )
        return told

    def _plan(self, grid: Volume) -> MemoryPlan:
        return plan_room(self.segmenter, grid, self._maps)

    def _require_time(self) -> None:
        if self._stop.is_set():
            raise StoppedError


class Service:
    """A model behind `dropgen serve`; this process reads, sends and writes.

    Args:
        client: The service.
        model: The version that makes every mask, because it is the one that is told of them.
        modality: As for `Recipe`.
        read: How a scan is read.
    """

    def __init__(self, client: Client, model: Model, modality: str | None, read: Read = read_here) -> None:
        self._client = client
        self._model = model.pinned
        self._modality = modality
        self._read = read

    @contextlib.contextmanager
    def segment(self, scan: Scan) -> Iterator[Segmented]:
        """Has the mask of one scan made.

        Raises:
            VolumeError: It is damaged, or the service refused it.
            ServiceError: The service went away.
        """
        modality = scan.modality or self._modality
        with self._read(scan) as loaded:
            entered = time.monotonic()
            if scan.series:
                answer = self._client.segment_series(scan.paths, modality, self._model)
            else:
                answer = self._client.segment(scan.paths[0], modality, self._model)
            span = (entered, time.monotonic())
            yield Segmented(loaded.channels[0], answer.volume, None, loaded.slices, span, answer.flags)


def _reading(scan: Scan) -> MemoryPlan:
    """A series while it is read: no more voxels than bytes, for pixels are taken uncompressed."""
    size = READING_BYTES * sum(path.stat().st_size for path in scan.paths)
    return MemoryPlan((1, 1, len(scan.paths)), 1, {"reading": size})


def _modality(segmenter: Segmenter, given: str | None, tag: str | None) -> str | None:
    """The modality of a scan: as it was given, or by its DICOM tag; never guessed."""
    intensity = segmenter.spec.intensity
    chosen = () if isinstance(intensity, str) or segmenter.spec.channels else tuple(intensity)
    found = named_by(tag, chosen)
    if given is not None and found is not None and given != found:
        raise VolumeError(f"its modality is given as '{given}' and its DICOM tag says {tag}; leave the given one out")
    return given or found
