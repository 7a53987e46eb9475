"""`dropgen study plan`: spacing, crop and intensity rule from the training cases, and what a study will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal as size_text

from dropgen import memory
from dropgen.config import Experiment, Features, Network, Training, load_experiment, read_yaml
from dropgen.errors import ConfigError, ResourceError
from dropgen.features.demand import Demand, demand_of
from dropgen.features.extractors import build as build_extractor
from dropgen.features.index import CaseKeys
from dropgen.features.store import FeatureStore, Kind
from dropgen.features.studies.crop import median_shape, most_downs, plan_crop
from dropgen.features.studies.fingerprint import UNNAMED, Fingerprint, take_fingerprint
from dropgen.features.studies.raw import YAML, class_names, open_source
from dropgen.features.studies.rule_choice import choose_rule
from dropgen.features.studies.spacing import target_spacing
from dropgen.features.studies.study import Case, Study
from dropgen.features.training_cost import Predictor, step_bytes, step_seconds
from dropgen.features.worker import Work

MEMORY_GB = 8.0  # what nnU-Net plans for
GB = 10**9


@dataclass(frozen=True)
class Settings:
    """How a study will be trained, as far as its plan depends on it."""

    features: Features
    network: Network
    training: Training

    @classmethod
    def of(cls, source: Path, root: Path) -> Settings:
        """An experiment's, or the defaults where the source is none.

        Raises:
            ConfigError: The experiment's predictor is not the flat UNet, whose memory is known here.
        """
        if source.suffix in YAML and "source" not in read_yaml(source):
            experiment: Experiment = load_experiment(source, root)
            if experiment.network.name != "unet":
                raise ConfigError(
                    f"study plan knows the memory of network.name = unet and {source} names "
                    f"{experiment.network.name}; plan for the study's YAML file instead"
                )
            return cls(experiment.features, experiment.network, experiment.training)
        return cls(Features(), Network(), Training())


@dataclass(frozen=True)
class Plan:
    """What is proposed for a study, and what it will take.

    Attributes:
        given: The study as it stands; with spacing and crop of 1 where it has no YAML file.
        study: The same with what is proposed.
        fingerprint: Of the training cases.
        reasons: Why the intensity rule is what it is, by modality or channel.
        median_shape: Voxels of the median training case at the proposed spacing.
        settings: What it is planned for.
        predictor: The network that memory and seconds are told of.
        demand: Of computing every case into an empty store.
        step_bytes: Memory of a training step.
        budget: What it may take.
        step_seconds: None where it was not measured.
    """

    given: Study
    study: Study
    fingerprint: Fingerprint
    reasons: dict[str, str]
    median_shape: tuple[float, ...]
    settings: Settings
    predictor: Predictor
    demand: Demand
    step_bytes: int
    budget: int
    step_seconds: float | None

    @property
    def training_hours(self) -> float | None:
        """Of the steps of one trial; None where no step was measured."""
        return None if self.step_seconds is None else self.step_seconds * self.settings.training.steps / 3600


def make_plan(
    source: Path,
    root: Path,
    memory_gb: float | None = None,
    measure: bool = False,
    on_case: Callable[[Case], None] = lambda case: None,
) -> Plan:
    """Plans a study; nothing is written.

    Args:
        source: Study YAML, experiment YAML, manifest CSV or nnU-Net raw folder.
        root: Output root, which the store will lie under.
        memory_gb: Budget of a training step in 10^9 bytes; by default as nnU-Net.
        measure: Whether a few small training steps are taken to tell the hours.
        on_case: Told of every training case that was opened.

    Raises:
        ConfigError, StudyError: The source is wrong or its training cases are broken.
        ResourceError: No crop fits into the budget.
    """
    budget_gb = MEMORY_GB if memory_gb is None else memory_gb
    if budget_gb <= 0:
        raise ConfigError(f"--memory-gb = {budget_gb:g} holds nothing; give the memory of a training step in GB")
    given, settings = open_source(source, root), Settings.of(source, root)
    fingerprint = take_fingerprint(given, on_case)
    classes = class_names(given, fingerprint)
    outputs = replace(given, classes=classes).labelling.outputs
    extractor = build_extractor(settings.features.extractor, image_channels=given.image_channels)
    spacing = target_spacing(fingerprint.spacings, fingerprint.inner_shapes)
    size = median_shape(fingerprint.spacings, fingerprint.inner_shapes, spacing)
    network = settings.network.model_copy(update={"downs": most_downs(size, settings.network.downs)})
    width = given.image_channels + extractor.channels
    predictor = Predictor(width, outputs, network.base, network.downs, network.convs, settings.training.batch)
    budget = round(budget_gb * GB)
    crop = plan_crop(spacing, size, network.downs, lambda crop: step_bytes(predictor, crop), budget)
    rules = {name: choose_rule(name, values) for name, values in fingerprint.intensities.items()}
    chosen = {name: rule for name, (rule, _) in rules.items()}
    study = replace(given, classes=classes, spacing=spacing, crop=crop, intensity=_intensity(given, chosen))
    return Plan(
        given=given,
        study=study,
        fingerprint=fingerprint,
        reasons={name: why for name, (_, why) in rules.items()},
        median_shape=tuple(float(edge) for edge in size),
        settings=replace(settings, network=network),
        predictor=predictor,
        demand=demand_of(_all_work(study), study, extractor, settings.features.dtype),
        step_bytes=step_bytes(predictor, crop),
        budget=budget,
        step_seconds=step_seconds(predictor, crop, _device(settings)) if measure else None,
    )


def require_room(plan: Plan, root: Path) -> None:
    """Refuses a plan that this machine cannot carry out.

    Raises:
        ResourceError: With what is needed and what is there, of disk or of memory.
    """
    store = FeatureStore.of(plan.settings.features, root)
    free = store.place.free()
    if free is not None and plan.demand.disk > free:
        raise ResourceError(
            f"the store of {plan.study.name} needs {size_text(plan.demand.disk)} and {store.location} has "
            f"{size_text(free)} free; free disk space there or choose another folder with --root or features.store, "
            "a coarser spacing, or features.dtype = int8"
        )
    available = memory.available()
    needed = {"preparing the largest case": plan.demand.memory(1)}
    if _device(plan.settings) == "cpu":
        needed["a training step"] = plan.step_bytes
    for what, size in needed.items():
        if size > available:
            raise ResourceError(
                f"{what} of {plan.study.name} needs {size_text(size)} of memory and {size_text(available)} are "
                "available; close other programs, lower --memory-gb or choose a coarser spacing"
            )


def document(plan: Plan, root: Path) -> dict[str, Any]:
    """The plan as plain values."""
    found, study = plan.fingerprint, plan.study
    store = FeatureStore.of(plan.settings.features, root)
    return {
        "action": "plan",
        "study": study.name,
        "cases": len(study.cases),
        "train": len(found.spacings),
        "fingerprint": {
            "spacing": _spread(found.spacings),
            "shape": _spread(found.shapes),
            "intensities": {
                name: {
                    "cases": values.cases, "low": values.low, "high": values.high,
                    "foreground": values.foreground, "stretch": round(values.stretch, 3),
                }
                for name, values in found.intensities.items()
            },
            "classes": {
                study.labelling.names[value]: {
                    "cases": one.cases, "smallest_ml": one.smallest, "median_ml": one.median, "largest_ml": one.largest,
                }
                for value, one in found.classes.items()
            },
        },
        "spacing": study.spacing,
        "crop": study.crop,
        "intensity": study.intensity,
        "median_shape": plan.median_shape,
        "network": {"base": plan.predictor.base, "downs": plan.predictor.downs},
        "batch": plan.predictor.batch,
        "store_bytes": plan.demand.disk,
        "store_free_bytes": store.place.free(),
        "prepare_bytes": plan.demand.memory(1),
        "step_bytes": plan.step_bytes,
        "memory_bytes": plan.budget,
        "memory_available_bytes": memory.available(),
        "steps": plan.settings.training.steps,
        "step_seconds": plan.step_seconds,
        "training_hours": plan.training_hours,
    }  # fmt: skip


def _intensity(given: Study, chosen: dict[str, str]) -> str | dict[str, str]:
    """One rule where all channels, or all training modalities, agree and no other is tested, else one for each.

    A modality that only validation and test cases have keeps the study's own rule, because they are not opened.
    """
    rules = dict(chosen)
    for case in () if given.channels else given.cases:
        own = (
            given.intensity if isinstance(given.intensity, str) else given.intensity.get(case.modality or "", "minmax")
        )
        rules.setdefault(case.modality or UNNAMED, own)
    if UNNAMED in rules or len(set(rules.values())) == 1:
        return next(iter(chosen.values()))
    return rules


def _all_work(study: Study) -> list[Work]:
    """Every case into an empty store; keys decide where entries lie and nothing about their size."""
    kinds: tuple[Kind, ...] = ("volumes", "labels", "features")
    return [
        Work(case, CaseKeys(""), kinds if case.label is not None else ("volumes", "features")) for case in study.cases
    ]


def _device(settings: Settings) -> str:
    return "cuda" if torch.cuda.is_available() and settings.training.device != "cpu" else "cpu"


def _spread(values_n3: np.ndarray) -> dict[str, list[float]]:
    return {
        "least": [float(value) for value in values_n3.min(axis=0)],
        "median": [float(value) for value in np.median(values_n3, axis=0)],
        "most": [float(value) for value in values_n3.max(axis=0)],
    }
