"""The disk that a search still needs, and the stop before it is full.

A trial keeps the best and the last checkpoint and nothing else, so what it takes follows from its network.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.filesize import decimal as size_text

from dropgen.config import Component, Trial
from dropgen.platform.methods import build as build_method
from dropgen.platform.networks import build_network
from dropgen.platform.train import Workbench

MOMENTS = 2  # AdamW keeps two values beside each weight
RESERVE = 128 * 2**20  # results, logs and MLflow
LOOK_SECONDS = 10.0


def weight_bytes(bench: Workbench, component: Component) -> int:
    """What the weights of a method's network take."""
    method = build_method(component)
    channels = bench.extractor.channels if bench.extractor is not None and method.needs_features else 0
    study = bench.study
    network = build_network(bench.experiment.network, method, channels, study.labelling.outputs, study.image_channels)
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def kept_bytes(bench: Workbench, weights: int) -> int:
    """What a trial with such weights leaves on disk: the last checkpoint, and a bundle for each rule that keeps one."""
    bundles = 2 if bench.beside else 1
    return (1 + MOMENTS + bundles) * weights


def free_bytes(folder: Path) -> int:
    """What the file system of a folder still takes."""
    return shutil.disk_usage(folder).free


@dataclass
class Disk:
    """Watches the free space of a search's folder.

    Attributes:
        bench: The opened experiment.
        concurrent: Trials at a time; each writes its next checkpoint beside the last one.
        left: The trials that are still to be trained.
        said: Why the search has to stop, once it has to.
    """

    bench: Workbench
    concurrent: int
    left: Callable[[], Sequence[Trial]]
    said: str | None = None
    _weights: dict[str, int] = field(default_factory=dict)
    _looked: float = -math.inf

    def full(self) -> bool:
        """Whether what is free is less than what the trials still need; looks at most every few seconds."""
        if self.said is None and time.monotonic() >= self._looked + LOOK_SECONDS:
            self._look()
            self._looked = time.monotonic()
        return self.said is not None

    def needed(self) -> int:
        """Bytes that the trials still have to write."""
        trials = self.left()
        if not trials:
            return 0
        weights = [self._weights_of(trial) for trial in trials]
        missing = [
            max(0, kept_bytes(self.bench, one) - _written(self.bench.folder(trial)))
            for trial, one in zip(trials, weights, strict=True)
        ]
        at_once = (1 + MOMENTS) * max(weights) * min(self.concurrent, len(trials))
        return sum(missing) + at_once + RESERVE

    def _look(self) -> None:
        folder = self.bench.root / self.bench.experiment.name
        needed, free = self.needed(), free_bytes(folder)
        if free < needed:
            self.said = (
                f"the {len(self.left())} trials that '{self.bench.experiment.name}' still has to train need "
                f"{size_text(needed)} in {folder} and {size_text(free)} are free; free disk space there, then the same "
                "command continues them: nothing is lost"
            )

    def _weights_of(self, trial: Trial) -> int:
        label = trial.method.label
        if label not in self._weights:
            self._weights[label] = weight_bytes(self.bench, trial.method)
        return self._weights[label]


def _written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
