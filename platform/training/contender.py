"""A network in training whose steps are timed in blocks, the loader as far ahead as in real training."""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field
from typing import Self

import torch

from dropgen.config import Trial
from dropgen.platform.methods import build as build_method
from dropgen.platform.networks import build_network
from dropgen.platform.training.batches import PREFETCH, Batches, Prefetched
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.learner import Learner
from dropgen.platform.training.trial import make_batches
from dropgen.platform.training.workers import Workers

STEPS = 4  # timed at a stretch, after as many as the loader works ahead


@dataclass
class Contender:
    """One method with one source of features.

    Attributes:
        features: "none", "stored" or "online".
        step: The next one.
        seconds: Mean seconds of a step, one value a block.
        waits: Mean seconds of a step that went by waiting for its batch.
    """

    method: str
    features: str
    learner: Learner
    batches: Batches
    step: int = 0
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, bench: Workbench, trial: Trial, device: str) -> Self:
        """A new network for a trial, with the share of the batch that one of its workers has."""
        method = build_method(trial.method)
        bench = bench.under(trial).on(device)
        channels = bench.extractor.channels if bench.extractor and method.needs_features else 0
        torch.manual_seed(trial.seed)
        study = bench.study
        network = build_network(
            bench.experiment.network, method, channels, study.labelling.outputs, study.image_channels
        )
        method.initialise(network)
        workers = Workers(size=bench.experiment.training.workers)
        batches = make_batches(bench, trial, method, channels, workers, device)
        learner = Learner(network, method, bench.experiment.training, device, bench.study.labelling)
        return cls(trial.method.label, bench.source(method) or "none", learner, batches)

    def run(self) -> None:
        """One block: steps until the loader is as far ahead as it gets, then the steps that are timed."""
        last = self.step + PREFETCH + STEPS
        loader = Prefetched(self.batches, self.step, last + PREFETCH)  # so that it never has nothing to do
        with contextlib.closing(iter(loader)) as batches:
            for _, batch in itertools.islice(batches, PREFETCH):
                self.learner.step(self.learner.network, batch)
            began, waited = self._now(), loader.waited
            for _, batch in itertools.islice(batches, STEPS):
                self.learner.step(self.learner.network, batch)
            self.seconds.append((self._now() - began) / STEPS)
            self.waits.append((loader.waited - waited) / STEPS)
        self.step = last

    def _now(self) -> float:
        """The time when everything that was asked of the device is done."""
        if self.learner.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
