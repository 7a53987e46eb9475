"""What `dropgen run` or `search` would do, counted from what is on disk; nothing is written, not even a folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal as size_text

from dropgen.config import Experiment
from dropgen.errors import ResourceError
from dropgen.features.demand import demand_of
from dropgen.features.extractors import build as build_extractor
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import Case, Study, load_study
from dropgen.features.studies.validation import validation_cases
from dropgen.features.studies.volume import GZIP_MAGIC, read_grid
from dropgen.platform.evaluate import held_out_cases
from dropgen.platform.external import split
from dropgen.platform.methods import build as build_method
from dropgen.platform.train import Workbench
from dropgen.platform.training.bench import choice_record, leaves_source_open, require_trainable, ruled_studies
from dropgen.platform.training.choice import Choice
from dropgen.tuning.disk import kept_bytes
from dropgen.tuning.evaluations import require_adaptable
from dropgen.tuning.filling import worth_storing
from dropgen.tuning.space import Plan, plan
from dropgen.tuning.workload import (
    AdaptationWork,
    ExternalWork,
    MethodWork,
    adaptation_work,
    external_work,
    fixed_work,
    space_work,
)


@dataclass(frozen=True)
class DryRun:
    """Everything that is left to do.

    Attributes:
        bench: What trials share, as far as it can be known without touching anything.
        store_cases: Cases that the store lacks something of.
        disk: Bytes that will be written: store, checkpoints, masks.
        store_free: Free bytes where the store lies; None for an object store.
        root_free: Free bytes under the output root.
        same_disk: Whether these are the same bytes.
        notes: What the numbers leave open.
    """

    bench: Workbench
    methods: tuple[MethodWork, ...]
    adaptations: tuple[AdaptationWork, ...]
    externals: tuple[ExternalWork, ...]
    unavailable: tuple[Mapping[str, Any], ...]
    store_cases: int
    disk: Mapping[str, int]
    store_free: int | None
    root_free: int
    same_disk: bool
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Training steps that are left, of all methods that are trained here."""
        return sum(work.steps for work in self.methods)

    @property
    def validations(self) -> int:
        """Predictions of validation cases while the steps that are left are trained."""
        every = self.bench.experiment.training.validate_every
        passes = sum(math.ceil(work.steps / every / self.bench.trainings) for work in self.methods)
        return passes * len(validation_cases(self.bench.study, self.bench.experiment.selection.rule))

    @property
    def evaluations(self) -> int:
        """Predictions of held-out cases that are left, those of test-time methods apart."""
        cases = len(held_out_cases(self.bench.study, self.bench.experiment.selection.rule))
        return cases * sum(work.tests for work in self.methods)


def look_ahead(
    experiment: Experiment, root: Path, *, tests: bool = True, unavailable: Sequence[Mapping[str, Any]] = ()
) -> DryRun:
    """Counts what a run has left to do.

    Args:
        experiment: What would be run.
        root: Output root, which need not exist.
        tests: Whether trained models are tested, as `run` does, or only trained, as `search` does.
        unavailable: What cannot run, as `run` takes it.

    Raises:
        ConfigError, StudyError, WeightsError: What the run itself would refuse.
        ResourceError: A checkpoint cannot be read.
    """
    ours, baselines = split(experiment)
    planned = plan(ours)
    study = load_study(ours.study, root)
    require_trainable(ours.model_copy(update={"methods": planned.methods}), study)
    require_adaptable(ours, planned.fixed)
    bench, storing, notes = _unopened(ours, planned, study, root)
    if ours.search.test == "chosen":
        notes.append(
            "search.test = chosen: which hyperparameters are tested is known only once all are trained; one set of "
            "every method is counted"
        )
    stored, index = bench.extractor if storing else None, bench.index
    if storing != (index.extractor is not None):  # a source that has to be settled yet needs both to be timed
        index = StudyIndex.of(study, stored, ours.features.dtype, bench.store)
    works = missing_work(study, index, bench.store)
    demand = demand_of(works, study, stored, ours.features.dtype)
    disk, cases = demand.disk, {work.case.id for work in works}
    for other, ruled in ruled_studies(bench.experiment, study, stored, bench.store).values():
        more = missing_work(other, ruled, bench.store)
        cases |= {work.case.id for work in more}
        disk += demand_of(more, other, stored if ruled.extractor else None, ours.features.dtype).disk
    trials = [*fixed_work(bench, planned), *(space_work(bench, space) for space in planned.spaces)]
    if not tests:
        trials = [replace(work, tests=0) for work in trials]
    adaptations = tuple(adaptation_work(bench, planned, adapt) for adapt in ours.adaptations) if tests else ()
    masks = _mask_bytes(held_out_cases(study, ours.selection.rule))
    checkpoints = sum((work.trials - work.done) * kept_bytes(bench, work.weight_bytes) for work in trials)
    registered = max((work.weight_bytes for work in trials), default=0)  # MLflow keeps a copy of the best
    tested = sum(work.tests for work in trials) + sum(work.models for work in adaptations)
    return DryRun(
        bench=bench,
        methods=tuple(trials),
        adaptations=adaptations,
        externals=external_work(bench, baselines) if tests else (),
        unavailable=tuple(unavailable),
        store_cases=len(cases),
        disk={
            "store": disk,
            "checkpoints": checkpoints + (registered if checkpoints else 0),
            "masks": tested * masks,
        },
        store_free=bench.store.place.free(),
        root_free=shutil.disk_usage(_existing(root)).free,
        same_disk=_same_disk(bench.store.folder, root),
        notes=tuple(notes),
    )


def require_room(found: DryRun) -> None:
    """Refuses what the disk cannot hold.

    Raises:
        ResourceError: With the bytes needed and free.
    """
    store, rest = found.disk["store"], sum(found.disk.values()) - found.disk["store"]
    where = str(found.bench.root)
    remedy = "free disk space there, choose another folder with --root or features.store, or lower what is to be done"
    if found.store_free is not None and found.same_disk and store + rest > found.root_free:
        raise ResourceError(
            f"'{found.bench.experiment.name}' would write {size_text(store + rest)} (store {size_text(store)}, "
            f"checkpoints and masks {size_text(rest)}) and {where} has {size_text(found.root_free)} free; {remedy}"
        )
    for size, free, place in ((store, found.store_free, found.bench.store.location), (rest, found.root_free, where)):
        if free is not None and size > free:
            raise ResourceError(
                f"'{found.bench.experiment.name}' would write {size_text(size)} to {place}, which has "
                f"{size_text(free)} free; {remedy}"
            )


def _unopened(experiment: Experiment, planned: Plan, study: Study, root: Path) -> tuple[Workbench, bool, list[str]]:
    """A workbench over a store that need not cover the study, whether features will be stored, and what is open."""
    notes: list[str] = []
    features = experiment.features
    methods = [build_method(method) for method in planned.methods]
    extractor = (
        build_extractor(features.extractor, image_channels=study.image_channels)
        if any(one.needs_features for one in methods)
        else None
    )
    store = FeatureStore.of(features, root, remembers=False)
    storing = features.source != "online" and extractor is not None and any(map(leaves_source_open, methods))
    choice = None
    if features.source == "auto" and storing:
        assert extractor is not None
        choice = Choice.read(choice_record(experiment, root, study, extractor, store))
        storing = worth_storing(experiment, study, extractor, root, store)
        if choice is None:
            notes.append("features.source = auto has not been settled; steps are counted as if features were online")
            choice = Choice("online", notes[0], None, None, 0, 0.0)
    source = features.source if choice is None else choice.source
    stored = extractor if source == "stored" else None
    index = StudyIndex.of(study, stored, features.dtype, store)
    shown = experiment.model_copy(update={"methods": planned.methods})
    rules = ruled_studies(shown, study, stored, store)
    return Workbench(shown, root, study, store, extractor, index, choice, rules), storing, notes


def _mask_bytes(cases: Sequence[Case]) -> int:
    """Of one mask of every case, as large as its compressed label is, or where it has none as the mean of others."""
    sizes = {case.id: size for case in cases if (size := _compressed_size(case.label)) is not None}
    if sizes:
        return round(sum(sizes.values()) * len(cases) / len(sizes))
    return sum(math.prod(read_grid(case.image).array.shape) for case in cases)


def _compressed_size(label: Path | None) -> int | None:
    if label is None:
        return None
    with label.open("rb") as file:
        return label.stat().st_size if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _same_disk(one: Path, other: Path) -> bool:
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev
