"""A plan as a person reads it: one table, and the YAML file to start from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.filesize import decimal as size_text
from rich.table import Table

from dropgen import memory
from dropgen.features.plan import Plan
from dropgen.features.store import FeatureStore
from dropgen.features.studies.raw import YAML

LEAST_WIDTH = 110  # characters; a pipe counts as 80, which would wrap every line
CLASSES_SHOWN = 16


def page(plan: Plan, root: Path) -> str:
    """The table: what the training cases are like, what is proposed, what it takes."""
    table = Table(
        title=f"study {plan.study.name}: planned from {_count(len(plan.fingerprint.spacings), 'training case')}"
    )
    table.title_justify = "left"
    for name in ("", "", "why, or how it was found"):
        table.add_column(name)
    for section in (_found(plan), _proposed(plan), _takes(plan, root)):
        for cells in section:
            table.add_row(*cells)
        table.add_section()
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip()


def snippet(plan: Plan, source: Path) -> str:
    """The study's YAML file with what is proposed."""
    study = plan.study
    lines = [f"name: {study.name}"]
    if source.suffix in YAML:
        lines.append(f"# source, few_shot and the like: as {source.name} has them")
    else:
        lines.append(f"source: {source.resolve()}")
    lines += [
        *(f"{key}: {_flow(value)}" for key, value in study.labelling.to_yaml().items()),
        f"spacing: {_flow([_plain(edge) for edge in study.spacing])}  # mm, RAS",
        f"crop: {_flow(list(study.crop))}  # for an experiment with network: {{base: {plan.predictor.base}, downs: "
        f"{plan.predictor.downs}}} and training: {{batch: {plan.predictor.batch}}}",
        f"intensity: {_flow(study.intensity)}",
        f"orientation_augmentation: {str(study.orientation_augmentation).lower()}"
        "  # false where left and right are different classes",
    ]
    return "\n".join(lines)


def notes(plan: Plan) -> list[str]:
    """What the plan rests on that a person has to know."""
    told = []
    if made_up := sorted(plan.study.train_domains & set(plan.study.placeholder_spacing)):
        told.append(f"the spacing of {', '.join(made_up)} is a placeholder, and the plan's spacing rests on it")
    short = [axis for axis, edge, most in zip("xyz", plan.study.crop, plan.median_shape, strict=True) if edge > most]
    if short:
        told.append(
            f"the crop is longer than the median case along {', '.join(short)}, where volumes are padded with 0: every "
            f"axis must be divisible by {2**plan.predictor.downs}; a finer spacing or fewer downs would waste less"
        )
    return told


def _found(plan: Plan) -> Iterable[tuple[str, str, str]]:
    found = plan.fingerprint
    yield "spacing, mm", _edges(np.median(found.spacings, 0)), _range(found.spacings)
    yield "shape, voxels", _edges(np.median(found.shapes, 0)), _range(found.shapes)
    for name, values in found.intensities.items():
        title = "intensities" if len(found.intensities) == 1 else f"intensities, {name}"
        inside = "no foreground"
        if values.foreground is not None:
            low, middle, high = (f"{value:.4g}" for value in values.foreground)
            inside = f"foreground 0.5% {low}, median {middle}, 99.5% {high}"
        yield title, f"{values.low:.4g} to {values.high:.4g}", inside
    for value, one in list(found.classes.items())[:CLASSES_SHOWN]:
        volume = f"{_plain(one.median)} ml"
        yield (
            plan.study.labelling.names[value],
            volume,
            f"in {one.cases} cases, {_plain(one.smallest)} to {_plain(one.largest)} ml",
        )
    if (more := len(found.classes) - CLASSES_SHOWN) > 0:
        yield f"{more} more classes", "", "--json has them"


def _proposed(plan: Plan) -> Iterable[tuple[str, str, str]]:
    study, given = plan.study, plan.given
    known = bool(given.classes)

    def beside(text: str, current: object, proposed: object) -> str:
        return f"{text}; the study has {current}" if known and current != proposed else text

    yield "spacing, mm", _edges(study.spacing), beside("nnU-Net's rule", _edges(given.spacing), _edges(study.spacing))
    why = f"median case {_edges(plan.median_shape)}, {_gb(plan.budget)} for a step"
    yield "crop, voxels", _edges(study.crop), beside(why, _edges(given.crop), _edges(study.crop))
    reasons = "; ".join(plan.reasons.values() if len(plan.reasons) == 1 else map(": ".join, plan.reasons.items()))
    yield "intensity", _flow(study.intensity), beside(reasons, _flow(given.intensity), _flow(study.intensity))
    network = f"base {plan.predictor.base}, downs {plan.predictor.downs}"
    yield "network", network, "as many downs as the shortest axis has room for without much padding"


def _takes(plan: Plan, root: Path) -> Iterable[tuple[str, str, str]]:
    store, features = FeatureStore.of(plan.settings.features, root), plan.settings.features
    free = store.place.free()
    room = store.location if free is None else f"{size_text(free)} free in {store.location}"
    kind = f"{features.extractor.label} as {features.dtype}"
    yield "disk of the store", size_text(plan.demand.disk), f"{_count(len(plan.study.cases), 'case')}, {kind}; {room}"
    available = size_text(memory.available())
    yield (
        "memory to prepare",
        size_text(plan.demand.memory(1)),
        f"the largest case, in one worker; {available} available",
    )
    yield (
        "memory of a step",
        size_text(plan.step_bytes),
        f"estimated, {plan.predictor.batch} crops, the optimiser included",
    )
    steps = plan.settings.training.steps
    if plan.training_hours is None:
        yield "hours of training", "not measured", f"{steps} steps a trial; --measure times a few small ones"
    else:
        yield (
            "hours of training",
            f"{plan.training_hours:.2f}",
            (f"{steps} steps a trial at {plan.step_seconds:.3g} s, without reading and validation"),
        )


def _edges(values: Iterable[float]) -> str:
    return " x ".join(str(_plain(value)) for value in values)


def _range(values_n3: np.ndarray) -> str:
    low, high = values_n3.min(0), values_n3.max(0)
    return "the same in all" if (low == high).all() else f"median; {_edges(low)} to {_edges(high)}"


def _plain(value: float) -> float | int:
    """Rounded to what a person writes: a header's 7.989999294281006 is 7.99."""
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() else short


def _gb(size: int) -> str:
    return f"{size / 1e9:g} GB"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
