"""What a precompute worker does to a case: prepare image and label, extract features, store what is missing."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dropgen import __version__, memory
from dropgen.config import Component
from dropgen.errors import DropGenError, ResourceError, VolumeError
from dropgen.features.extractors import Extractor, build, extract
from dropgen.features.index import CaseKeys, case_keys
from dropgen.features.store import FeatureStore, Kind
from dropgen.features.studies.prepare import Grid, Prepared, prepare, prepare_label
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import read_mask, read_volume


@dataclass(frozen=True)
class Work:
    """What is missing of one case."""

    case: Case
    keys: CaseKeys
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Recipe:
    """What all cases of a run share; sent to every worker once."""

    store: FeatureStore
    study: Study
    extractor: Component | None
    dtype: str
    commit: str


@dataclass(frozen=True)
class Outcome:
    """How a worker fared with one case.

    Attributes:
        problem: What is wrong with the case; None when all is written.
        worker: The host and the process.
        began: Seconds on that host's clock.
        ended: The same.
        extracting: How many of the seconds between went by inside the extractor.
    """

    problem: str | None
    worker: str
    began: float
    ended: float
    extracting: float


class Worker:
    """One process with one extractor, whose threads each take a case from its files into the store.

    While one case is in the extractor the others are read, prepared or written. A lock before the extractor is all
    the queue there is, so no more volumes are in memory than there are threads.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)  # a core per worker: two volumes on two cores finish sooner than one on both
        self._recipe = recipe
        self._store = recipe.store
        self._extracting = threading.Lock()
        self._refusal: DropGenError | None = None
        self._extractor: Extractor | None = None
        try:
            if recipe.extractor is not None:
                self._extractor = build(recipe.extractor, image_channels=recipe.study.image_channels)
        except DropGenError as error:  # Ray would tell of it as of a dead process
            self._refusal = error

    def run(self, work: Work) -> Outcome:
        """Writes a case's missing entries.

        Raises:
            ResourceError: The store cannot be written to, so that no other case will fare better.
            WeightsError: This machine lacks the extractor's weights.
        """
        if self._refusal is not None:
            raise self._refusal
        problem, extracting, began = None, 0.0, time.monotonic()
        try:
            extracting = self._write(work)
        except ResourceError:
            raise
        except DropGenError as error:
            problem = f"case {work.case.id}: {str(error).removeprefix(f'case {work.case.id}: ')}"
        finally:
            memory.give_back()
        return Outcome(problem, f"{socket.gethostname()}:{os.getpid()}", began, time.monotonic(), extracting)

    def _write(self, work: Work) -> float:
        """Returns the seconds that the case was in the extractor."""
        case, keys, origin = work.case, work.keys, self._provenance(work.case)
        prepared = self._prepared(work)
        label = None
        if "labels" in work.kinds and case.label is not None:
            label = self._label(case, prepared.grid)
        fingerprint = None if self._extractor is None else self._extractor.fingerprint
        if case_keys(case, self._recipe.study.preparation, fingerprint, self._recipe.dtype) != keys:
            raise VolumeError("its files changed since the run started; run the same command again")
        if "volumes" in work.kinds:
            self._store.put_volume(keys.volume, prepared, origin | {"source": _files(case)})
        if label is not None and keys.label is not None:
            self._store.put_label(keys.label, label, origin | {"source": str(case.label), "volume": keys.volume})
        if "features" not in work.kinds or keys.features is None or self._extractor is None:
            return 0.0
        unit = np.array(prepared.unit)  # a copy, because PyTorch warns about memory it must not write to
        with self._extracting:
            began = time.monotonic()
            features, stats = extract(self._extractor, unit)
            seconds = time.monotonic() - began
        made_by = {"volume": keys.volume, "extractor": fingerprint, "dtype": self._recipe.dtype}
        self._store.put_features(
            keys.features, features, stats, origin | {"source": _files(case)} | made_by, self._recipe.dtype
        )
        return seconds

    def _prepared(self, work: Work) -> Prepared:
        if "volumes" not in work.kinds and self._store.has("volumes", work.keys.volume):
            return self._store.volume(work.keys.volume)
        channels = tuple(map(read_volume, work.case.images))
        return prepare(channels, self._recipe.study.preparation, work.case.modality)

    def _label(self, case: Case, grid: Grid) -> np.ndarray:
        assert case.label is not None
        label = prepare_label(read_mask(case.label), grid)
        labelling = self._recipe.study.labelling
        if (highest := int(label.max())) > labelling.highest:
            raise VolumeError(f"{case.label}: label value {highest} is unknown; the classes are 0..{labelling.last}")
        return label

    def _provenance(self, case: Case) -> dict[str, Any]:
        return {
            "case": case.id,
            "study": self._recipe.study.name,
            "who": f"{_user()}@{socket.gethostname()}",
            "version": __version__,
            "commit": self._recipe.commit,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def _files(case: Case) -> str:
    return ", ".join(map(str, case.images))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return str(os.getuid())
