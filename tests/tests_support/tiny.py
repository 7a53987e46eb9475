"""A tiny real study in a real store, made in this process: what training tests stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dropgen.config import Experiment, validate
from dropgen.features.extractors import build, extract
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.phantom import PhantomSpec, make_phantom_study
from dropgen.features.studies.prepare import prepare, prepare_label
from dropgen.features.studies.study import Study, load_study, under_rule
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.train import Workbench

SPEC = PhantomSpec(
    size=20, crop=16, train_subjects=3, val_subjects=2, test_subjects=1, ellipsoids=1, tubes=1, distractors=1,
    ellipsoid_radius=(3.0, 4.0), tube_radius=(1.5, 2.0), distractor_radius=(1.0, 1.5),
)  # fmt: skip

SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "methods": [{"name": "dropgen", "p": 0.5}],
    "seeds": [1],
    "features": {"dtype": "float32"},
    "network": {"base": 2, "downs": 2},
    "selection": {"rule": "target_validation"},
    "training": {"steps": 6, "batch": 2, "learning_rate": 1e-2, "validate_every": 3, "checkpoint_every": 1},
}


def tiny_experiment(root: Path, **changes: Any) -> Experiment:
    """An experiment of seconds; `changes` replaces top-level sections or, for mappings, single keys of them."""
    values: dict[str, Any] = {**SETTINGS}
    if "study" not in changes:
        values["study"] = str(make_phantom_study(root / "study", spec=SPEC))
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(Experiment, values, "tiny")


def fill_store(experiment: Experiment, root: Path) -> None:
    """Puts every case of the experiment's study into the store under every intensity rule, without Ray."""
    study = load_study(experiment.study, root)
    for ruled in (study, *(under_rule(study, rule) for rule in experiment.intensities)):
        _fill(experiment, ruled, FeatureStore.of(experiment.features, root))


def _fill(experiment: Experiment, study: Study, store: FeatureStore) -> None:
    extractor = build(experiment.features.extractor, image_channels=study.image_channels)
    index = StudyIndex.of(study, extractor, experiment.features.dtype, store)
    for case in study.cases:
        keys = index.keys[case.id]
        if index.missing(store).keys().isdisjoint({case.id}):
            continue
        assert keys.label is not None
        assert keys.features is not None
        assert case.label is not None
        prepared = prepare(tuple(map(read_volume, case.images)), study.preparation, case.modality)
        features, stats = extract(extractor, prepared.unit)
        provenance = {"case": case.id}
        store.put_volume(keys.volume, prepared, provenance)
        store.put_label(keys.label, prepare_label(read_mask(case.label), prepared.grid), provenance)
        store.put_features(keys.features, features, stats, provenance, experiment.features.dtype)


def tiny_bench(root: Path, **changes: Any) -> Workbench:
    """An opened workbench over a filled store."""
    experiment = tiny_experiment(root, **changes)
    fill_store(experiment, root)
    return Workbench.open(experiment, root)
