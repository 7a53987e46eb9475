"""What all trials of an experiment share: the study, the store, the extractor, and where trials live."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from dropgen.config import LEAVE_ONE_OUT, Component, Experiment, Network, Trial, to_json
from dropgen.errors import CheckpointError, ConfigError, StudyError
from dropgen.features.extractors import Extractor
from dropgen.features.extractors import build as build_extractor
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.intensity import ZSCORE
from dropgen.features.studies.prepare import Prepared
from dropgen.features.studies.study import Case, Study, load_study, under_rule
from dropgen.features.studies.validation import validation_cases
from dropgen.manifest import code_version, digest, read_json
from dropgen.platform.methods import Method
from dropgen.platform.methods import build as build_method
from dropgen.platform.networks import require_crop_fits, require_layers
from dropgen.platform.training.choice import Choice, Source

# Everything between a file and a chosen bundle: what predicts in validation takes part in the choice.
CODE = (
    "features",
    "platform/training",
    "platform/methods",
    "platform/networks",
    "platform/segmenter.py",
    "platform/evaluation/inference.py",
    "platform/evaluation/metrics.py",
    "platform/evaluation/quality.py",
)
BUNDLE = "bundle"  # what the selection rule chose
BESIDE = "bundle-source"  # what the validation cases of the training domains would have chosen
MEASURING = {"nsd_tolerance"}  # says how a finished mask is measured; no training looks at it
ELSEWHERE = {"store", "cache_gb"}  # where entries lie changes nothing that is computed from them


def trials_of(experiment: Experiment) -> tuple[Trial, ...]:
    """Every method with every combination of its listed option values, with every seed; each once.

    Raises:
        ConfigError: A list holds no value.
    """
    methods = [variant for method in experiment.methods for variant in _grid(method)]
    trials = [Trial(method=method, seed=seed) for method in methods for seed in experiment.seeds]
    return tuple({trial.label: trial for trial in trials}.values())


def require_trainable(experiment: Experiment, study: Study) -> list[Method]:
    """Checks all that can be known before anything is computed; returns the trials' methods.

    Raises:
        ConfigError: A method option is out of range, a method cannot use stored features or the study's labels or
            channels, the method or the crop does not fit the network, or the batch the workers.
        StudyError: The study has no case to validate on.
        WeightsError: Pretrained weights that a method starts from are missing.
    """
    trials = trials_of(experiment)
    methods = [build_method(trial.method) for trial in trials]
    for trial, method in zip(trials, methods, strict=True):
        if method.needs_features and method.needs_online and experiment.features.source == "stored":
            raise ConfigError(
                f"method {method.name} trains on crops of changed anatomy, to which stored features do not belong: "
                "set features.source to 'online' or 'auto'"
            )
        if method.one_class and not study.labelling.plain:
            raise ConfigError(
                f"method {method.name} takes every voxel to have one known class, and study {study.name} has regions "
                "that overlap or voxels to ignore: choose another method"
            )
        if method.unit_scale and ZSCORE in _rules(trial.intensity or study.intensity):
            raise ConfigError(
                f"method {method.name} starts from weights that know intensities in [0, 1], and {ZSCORE} gives others: "
                "give the method an intensity rule of its own, intensity: minmax, or take it out"
            )
        if method.one_channel and study.channels:
            raise ConfigError(
                f"method {method.name} takes images of one channel, and those of study {study.name} have "
                f"{study.image_channels}, {', '.join(study.channels)}: choose another method"
            )
        _require_network_fits(experiment.network, method, study.crop)
        method.pretrained()
    validation_cases(study, experiment.selection.rule)
    if experiment.selection.rule == LEAVE_ONE_OUT:
        _require_leavable(experiment)
    training = experiment.training
    if training.batch % training.workers:
        raise ConfigError(
            f"training.batch = {training.batch} cannot be shared by training.workers = {training.workers}: "
            "choose a multiple"
        )
    return methods


def _rules(intensity: str | Mapping[str, str]) -> Collection[str]:
    return (intensity,) if isinstance(intensity, str) else intensity.values()


def _require_leavable(experiment: Experiment) -> None:
    """Refuses what would have to be chosen on cases that the final network was trained on.

    Raises:
        ConfigError: A scheduler, a test-time method, or a method that is tuned after training.
    """
    where = f"selection.rule = {LEAVE_ONE_OUT} judges trainings that are thrown away"
    if experiment.search.scheduler != "none":
        raise ConfigError(f"{where}, one after the other, and no scheduler can stop one of them: set it to none")
    if experiment.adaptations:
        name = experiment.adaptations[0].name
        raise ConfigError(f"{where}, so that {name} has no case to be tuned on; name another rule or leave it out")
    for trial in trials_of(experiment):
        if free := [name for name in build_method(trial.method).after_training if name not in trial.method.options]:
            raise ConfigError(
                f"{where}, so that {trial.method.name} has no case to choose {', '.join(free)} on after training; give "
                "a value, or name another rule"
            )


def _require_network_fits(network: Network, method: Method, crop: tuple[int, int, int]) -> None:
    if method.sizes is not None:
        method.sizes.require(crop)
        return
    require_layers(network, method)
    require_crop_fits(network, crop)


def leaves_source_open(method: Method) -> bool:
    """Whether the method reads features that may be stored or computed from the crop."""
    return method.needs_features and not method.needs_online


def choice_record(experiment: Experiment, root: Path, study: Study, extractor: Extractor, store: FeatureStore) -> Path:
    """Where the choice that `features.source: auto` leads to is on record.

    The name covers data, settings and code that are in every trial's key, and no method: it is another one only where
    all trials are trained anew, so no trial goes on with another source than it began with.
    """
    name = digest({
        "network": to_json(experiment.network),
        "training": to_json(experiment.training),
        "dtype": experiment.features.dtype,
        "extractor": extractor.fingerprint,
        "crop": study.crop,
        "data": StudyIndex.of(study, None, experiment.features.dtype, store).digest,
        "code": code_version(*CODE),
    })  # fmt: skip
    return root / experiment.name / "features" / f"{name}.json"


Ruled = Mapping[str, tuple[Study, StudyIndex]]


def ruled_studies(
    experiment: Experiment, study: Study, stored: Extractor | None, store: FeatureStore
) -> dict[str, tuple[Study, StudyIndex]]:
    """The study and its entries under every intensity rule that a method names beside the study's own.

    Args:
        experiment: Its methods hold plain values and lists.
        study: Under its own rule.
        stored: What stored features are made by; None where none are. Methods that read none get none.
        store: Remembers the hashes of files.

    Raises:
        ConfigError: A rule is unknown, or not for a case's modality.
    """
    reads: dict[str, bool] = {}
    for trial in trials_of(experiment):
        if trial.intensity is not None:
            reads[trial.intensity] = reads.get(trial.intensity, False) or leaves_source_open(build_method(trial.method))
    found = {}
    for rule, features in reads.items():
        other = under_rule(study, rule)
        found[rule] = other, StudyIndex.of(other, stored if features else None, experiment.features.dtype, store)
    return found


def _grid(method: Component) -> list[Component]:
    names = list(method.options)
    values = [value if isinstance(value, list | tuple) else [value] for value in method.options.values()]
    for name, listed in zip(names, values, strict=True):
        if not listed:
            raise ConfigError(f"method {method.name}: {name} = {listed} lists no value; name at least one")
    return [Component.of(method.name, **dict(zip(names, choice, strict=True))) for choice in itertools.product(*values)]


@dataclass(frozen=True)
class Workbench:
    """Opened once per process; refuses an experiment that could not run to its end.

    Attributes:
        root: Absolute output root.
        extractor: On the CPU until `on` moves it; None when no method of the experiment needs features.
        index: Store keys of every case; without feature keys when features are made online.
        choice: Where features come from, where the experiment leaves that to `auto.settle`; else None.
        rules: Study and index under every intensity rule that a method names beside the study's.
    """

    experiment: Experiment
    root: Path
    study: Study
    store: FeatureStore
    extractor: Extractor | None
    index: StudyIndex
    choice: Choice | None = None
    rules: Ruled = field(default_factory=dict)

    @classmethod
    def open(cls, experiment: Experiment, root: Path) -> Workbench:
        """Loads the study, builds methods and extractor, and checks that the store covers every case.

        Raises:
            ConfigError, StudyError, WeightsError: As `require_trainable`.
            StoreError: A case is not in the store.
            CheckpointError: The source of features is "auto" and not chosen yet.
        """
        study = load_study(experiment.study, root)
        methods = require_trainable(experiment, study)
        needed = any(method.needs_features for method in methods)
        component, channels = experiment.features.extractor, study.image_channels
        extractor = build_extractor(component, image_channels=channels) if needed else None
        store = FeatureStore.of(experiment.features, root)
        source, choice = experiment.features.source, None
        if source == "auto" and extractor is not None and any(map(leaves_source_open, methods)):
            choice = Choice.read(choice_record(experiment, root, study, extractor, store))
            if choice is None:
                raise CheckpointError(
                    f"features.source = 'auto' of experiment '{experiment.name}' has not led to a choice yet, because "
                    "nothing is trained; run: dropgen train EXPERIMENT.yaml"
                )
            source = choice.source
        stored = extractor if source == "stored" else None
        index = StudyIndex.of(study, stored, experiment.features.dtype, store)
        index.require(store)
        rules = ruled_studies(experiment, study, stored, store)
        for _, ruled in rules.values():
            ruled.require(store)
        return cls(experiment, root, study, store, extractor, index, choice, rules)

    def under(self, trial: Trial) -> Self:
        """The same workbench over the volumes as this trial's intensity rule prepares them."""
        if trial.intensity is None:
            return self
        study, index = self.rules[trial.intensity]
        return replace(self, study=study, index=index)

    def require_known_labels(self) -> None:
        """Refuses labels with a value that is no class of the study.

        A stored label knows no classes: a study with fewer of them finds those of another one over the same files.

        Raises:
            StudyError: Names every such case of the training and validation cases, the value and the classes.
        """
        study, problems = self.study, []
        last = study.labelling.last
        for case in (*study.split("train"), *validation_cases(study, self.experiment.selection.rule), *self.beside):
            key = self.index.keys[case.id].label
            if key is not None and (highest := self.store.highest_label(key)) > study.labelling.highest:
                problems.append(f"case {case.id}: label value {highest} of {case.label} is unknown")
        if problems:
            raise StudyError(
                f"study {study.name} has the classes 0..{last} ({', '.join(study.classes)}), and some labels more; "
                "add the classes to the study or correct the labels:",
                problems,
            )

    @property
    def beside(self) -> tuple[Case, ...]:
        """Validation cases of the training domains, where the experiment asks what they would have chosen.

        Empty where they are those of its rule, or where the study has none.
        """
        selection = self.experiment.selection
        if not selection.columns or selection.rule == "source_validation":
            return ()
        return tuple(case for case in self.study.split("val") if case.domain in self.study.train_domains)

    @property
    def trainings(self) -> int:
        """How many trainings one trial is: with a rule that leaves domains out one for each, and the final one."""
        return 1 + len(self.study.train_domains) if self.experiment.selection.rule == LEAVE_ONE_OUT else 1

    def source(self, method: Method) -> Source | None:
        """Where a method's features come from; None where it has none."""
        if not method.needs_features:
            return None
        if method.needs_online:
            return "online"
        source = self.experiment.features.source
        if source == "auto":
            assert self.choice is not None
            return self.choice.source
        return source

    def on(self, device: str) -> Self:
        """The same workbench with its extractor where a trial's crops are; whoever only needs keys stays on the CPU."""
        if self.extractor is None or device == "cpu":
            return self
        component, channels = self.experiment.features.extractor, self.study.image_channels
        return replace(self, extractor=build_extractor(component, device, channels))

    def folder(self, trial: Trial) -> Path:
        """Where a trial's files live; the name covers its configuration, its data and the code."""
        return self.root / self.experiment.name / "trials" / self.key(trial)

    def bundle(self, trial: Trial) -> Path:
        """The bundle of a trained trial.

        Raises:
            CheckpointError: The trial is not trained; names the command.
        """
        if read_json(self.folder(trial) / "result.json") is None:
            raise CheckpointError(
                f"trial '{trial.label}' of experiment '{self.experiment.name}' is not trained; run: dropgen train"
                f" EXPERIMENT.yaml --method '{trial.method.label}' --seed {trial.seed}"
            )
        return self.folder(trial) / BUNDLE

    def stored(self, case: Case, *methods: Method) -> tuple[Prepared, np.ndarray | None, np.ndarray]:
        """A labelled case from the store: volume, raw features `[C, X, Y, Z]` and label, on the prepared grid.

        The features are None where none of the methods reads stored ones.
        """
        keys = self.index.keys[case.id]
        assert keys.label is not None
        features = None
        if keys.features is not None and any(self.source(method) == "stored" for method in methods):
            features = self.store.features(keys.features).whole()
        return self.store.volume(keys.volume), features, self.store.label(keys.label)

    def key(self, trial: Trial) -> str:
        """Digest of everything that a trial's result depends on."""
        experiment = self.experiment
        method = build_method(trial.method)
        source = self.source(method)
        used = {split: [case.id for case in self.study.split(split)] for split in ("train", "val")}
        index = self.under(trial).index
        keys = {name: index.keys[name] for names in used.values() for name in names}
        return digest({
            "trial": to_json(trial),
            "network": to_json(experiment.network),
            "training": to_json(experiment.training),
            "selection": {"rule": experiment.selection.rule},  # what else is told beside it trains nothing else
            "evaluation": experiment.evaluation.model_dump(mode="json", exclude=MEASURING),
            "features": experiment.features.model_dump(mode="json", exclude=ELSEWHERE) | {"source": source}
            if source else None,
            "extractor": self.extractor.fingerprint if source and self.extractor else None,
            "pretrained": method.pretrained(),
            "classes": self.study.classes,
            **({} if self.study.labelling.plain else {"labels": self.study.labelling.to_yaml()}),
            "orientation": self.study.orientation_augmentation,
            "crop": self.study.crop,
            "cases": used,
            "data": {name: (key.volume, key.label, key.features if source == "stored" else None)
                     for name, key in keys.items()},
            "code": code_version(*CODE),
        })  # fmt: skip
