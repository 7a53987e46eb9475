"""Gamma and bias: level 0 is the clean image, a seed is a field, and the range stays."""

from __future__ import annotations

import dataclasses
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.features.studies.prepare import network_scale, prepare
from dropgen.features.studies.volume import read_volume
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.robustness import analyse, biased, corrupted, gamma
from dropgen.platform.evaluation.touches import read_touches


def unit(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((8, 8, 8), dtype=np.float32)
    return np.asarray((values - values.min()) / (values.max() - values.min()))


@given(st.floats(-0.9, 0.9))
def test_gamma_keeps_0_and_1_and_the_order(level: float) -> None:
    values = np.linspace(0, 1, 101, dtype=np.float32)
    changed = gamma(values, level)
    assert (changed[0], changed[-1]) == (0, 1)
    assert (np.diff(changed) >= 0).all()


def test_a_field_of_level_0_and_a_gamma_of_0_change_nothing() -> None:
    assert np.array_equal(biased(unit()[None], 0.0, seed=3)[0], unit())
    assert np.array_equal(gamma(unit(), 0.0), unit())


def test_a_seed_is_one_field_and_another_seed_another() -> None:
    one, again, other = (biased(unit()[None], 0.3, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


@settings(max_examples=8)
@given(st.floats(0.05, 0.5), st.integers(0, 100))
def test_the_range_after_a_field_is_that_of_the_clean_image(scene: Scene, level: float, seed: int) -> None:
    case = scene.test_cases[0]
    clean = prepare([read_volume(case.image)], scene.bench.study.preparation, case.modality)
    changed = corrupted(clean, lambda values: biased(values, level, seed))
    assert (changed.unit.min(), changed.unit.max()) == pytest.approx((clean.unit.min(), clean.unit.max()), abs=1e-6)
    assert not np.array_equal(changed.unit, clean.unit)


def test_a_z_score_stays_a_z_score(scene: Scene) -> None:
    case = scene.test_cases[0]
    rule = dataclasses.replace(scene.bench.study.preparation, intensity="zscore")
    clean = prepare([read_volume(case.image)], rule, case.modality)
    changed = corrupted(clean, lambda values: gamma(values, 0.6))
    channels = [network_scale(torch.from_numpy(one.unit)[None], [one]).numpy() for one in (clean, changed)]
    assert channels[1].mean() == pytest.approx(channels[0].mean(), abs=1e-3)
    assert channels[1].std() == pytest.approx(channels[0].std(), rel=1e-3)
    same = corrupted(clean, lambda values: values)
    assert np.array_equal(same.unit, clean.unit)
    assert (same.shift, same.scale) == (clean.shift, clean.scale)


def test_at_level_0_every_model_has_the_dice_of_the_table_and_every_look_is_logged(scene: Scene) -> None:
    folder = scene.bench.root / scene.bench.experiment.name
    before = len(read_touches(folder))
    rows = analyse(scene).rows
    for model in scene.chosen_models:
        expected = fmean(dice for dice in model.row["target_dice"].values() if dice is not None)
        clean = [row for row in rows if row["model"] == model.name and row["level"] == 0]
        assert {row["kind"] for row in clean} == {"gamma", "bias"}
        for row in clean:
            assert row["unseen_dice"] == expected
            assert row["source_dice"] == model.row["source_dice"]
    logged = read_touches(folder)[before:]
    assert [(touch.verb, touch.trial) for touch in logged] == [
        ("analyse", model.row["trial"]) for model in scene.chosen_models
    ]
