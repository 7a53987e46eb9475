"""Training, prediction and what is told of it on images of two channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.study import Study
from dropgen.features.studies.volume import Volume, read_mask, read_volume
from dropgen.features.symmetry import IDENTITY
from dropgen.manifest import read_json, write_json
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.analyses.dependence import Without, ways
from dropgen.platform.evaluation.memory import plan_memory
from dropgen.platform.evaluation.replay import compare_geometry
from dropgen.platform.evaluation.uncertainty import predict_uncertain
from dropgen.platform.external.raw import channel_names, write_dataset
from dropgen.platform.methods import build
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.augment import add_noise
from dropgen.platform.training.batches import Batches
from dropgen.platform.training.plan import Sample, SamplePlan
from dropgen.platform.training.trial import make_batches
from dropgen.platform.training.workers import Workers
from tests_support.channels import NAMES, two_channel_experiment
from tests_support.segmenters import make_segmenter
from tests_support.tiny import fill_store

CHANNELS = 24  # of MIND on both


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    root = tmp_path_factory.mktemp("bench")
    experiment = two_channel_experiment(root, analyses=["condition1"])
    fill_store(experiment, root)
    return Workbench.open(experiment, root)


def batches(bench: Workbench, online_share: float = 0, **changes: object) -> Batches:
    """Whole volumes, so that stored and online features have the same surroundings."""
    (trial,) = trials_of(bench.experiment)
    method = build(Component.of("dropgen", p=0.5))
    made = make_batches(bench, trial, method, CHANNELS, Workers(), "cpu")
    plan = dataclasses.replace(made.plan, crop=(20, 20, 20), affine=False)
    augmentation = made.augmentation.model_copy(update={"intensity": False} | changes)
    return dataclasses.replace(made, plan=plan, online_share=online_share, augmentation=augmentation)


@pytest.mark.parametrize("step", range(3))
def test_stored_features_are_the_online_ones(bench: Workbench, step: int) -> None:
    stored, online = (batches(bench, share).at(step) for share in (0, 1))
    assert stored.image_bcxyz.shape[1] == 2
    assert torch.equal(stored.image_bcxyz, online.image_bcxyz)
    assert torch.equal(stored.kept_bc, online.kept_bc)
    assert stored.features_bcxyz is not None
    assert online.features_bcxyz is not None
    kept = stored.kept_bc[:, 2:, None, None, None]
    assert torch.allclose(stored.features_bcxyz, online.features_bcxyz * kept, atol=2e-4)


def test_beyond_a_crop_every_channel_has_its_own_response_to_background(bench: Workbench) -> None:
    maker = batches(bench)
    case = next(iter(maker.keys))
    sample = Sample(case, (0, 0, 0), (20, 20, 20), IDENTITY, 2 * np.eye(3), np.ones(2 + CHANNELS, bool), 0)
    unit, label, features = maker.read(sample)
    assert unit.shape == (2, 20, 20, 20)
    assert label.shape == (1, 20, 20, 20)
    assert features is not None
    assert features.shape == (CHANNELS, 20, 20, 20)
    assert (unit[:, :3] == 0).all()


def test_noise_changes_every_channel_by_draws_of_its_own_and_the_first_as_an_image_alone() -> None:
    unit = torch.rand(1, 12, 12, 12).repeat(3, 1, 1, 1)
    changed = add_noise(unit, 7, 1.0)
    assert torch.equal(changed[:1], add_noise(unit[:1], 7, 1.0))
    assert not torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[1], changed[2])
    assert torch.equal(changed, add_noise(unit, 7, 1.0))


def test_a_trial_trains_is_tested_and_predicts_from_its_files(bench: Workbench) -> None:
    (trial,) = trials_of(bench.experiment)
    result = train_trial(bench, trial)
    assert result["curve"]["condition1"]
    spec = read_json(Path(result["bundle"]) / "segmenter.json")["spec"]
    assert spec["channels"] == list(NAMES)
    evaluate_trial(bench, trial)
    segmenter = Segmenter.load(Path(result["bundle"]))
    case = bench.study.split("test")[0]
    image, other = map(read_volume, case.images)
    written = read_mask(bench.folder(trial) / "evaluation" / "masks" / f"{case.id}.nii.gz")
    np.testing.assert_array_equal(segmenter.predict(image, other), written.array)
    assert written.array.shape == image.array.shape
    prepared, features, _ = bench.stored(case, segmenter.method)
    stored = segmenter.predict_prepared(prepared, features)
    assert np.mean(segmenter.predict_prepared(prepared) == stored) > 0.999


def test_replayed_features_are_compared_on_two_channels_too(bench: Workbench, tmp_path: Path) -> None:
    rows = compare_geometry(bench, tmp_path)
    assert {row.kind for row in rows} >= {"flip", "quarter turn"}


def noise(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).random((17, 18, 19), np.float32), np.eye(4))


def test_uncertainty_drops_the_whole_image_or_all_features() -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5), channels=NAMES)
    prepared = prepare([noise(0), noise(1)], segmenter.spec.preparation)
    _, found = predict_uncertain(segmenter, prepared)
    of_image, of_features = (
        segmenter.around(Without(segmenter.network, ways(2)[way]).eval()).predict_native(prepared)
        for way in ("without_features", "without_image")
    )
    assert found.disagreement_map is not None
    np.testing.assert_array_equal(found.disagreement_map, of_image != of_features)


def test_a_second_channel_is_planned_for(bench: Workbench) -> None:
    one, two = (make_segmenter(Component.of("erm"), **more) for more in ({}, {"channels": NAMES}))
    grid = prepare([noise(0)], one.spec.preparation).grid
    first, second = plan_memory(one, grid).stages, plan_memory(two, grid).stages
    assert all(second[name] > first[name] for name in ("reading", "preparing", "windows"))


def test_a_bundle_of_before_has_one_channel(tmp_path: Path) -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5))
    segmenter.save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "segmenter.json"
    record = read_json(path)
    del record["spec"]["channels"]
    write_json(path, record)
    volume = noise(0)
    np.testing.assert_array_equal(Segmenter.load(tmp_path / "bundle").predict(volume), segmenter.predict(volume))


def test_nnunet_gets_every_channel_with_the_name_that_its_rule_asks_for(bench: Workbench, tmp_path: Path) -> None:
    study: Study = dataclasses.replace(bench.study, intensity={"plain": "hu", "inverted": "minmax"})
    assert channel_names(study) == ("CT", "MRI")
    write_dataset(tmp_path, study, study.split("train"))
    assert read_json(tmp_path / "dataset.json")["channel_names"] == {"0": "CT", "1": "MRI"}
    case = study.split("train")[0]
    for channel, source in enumerate(case.images):
        found = read_volume(tmp_path / "imagesTr" / f"{case.id}_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(found.array, read_volume(source).array)


def test_a_plan_of_samples_draws_masks_over_both_channels(bench: Workbench) -> None:
    (trial,) = trials_of(bench.experiment)
    plan: SamplePlan = make_batches(bench, trial, build(trial.method), CHANNELS, Workers(), "cpu").plan
    assert plan.sample(0, 0).kept.shape == (2 + CHANNELS,)
