from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dropgen.config import Experiment
from dropgen.errors import ConfigError, StoreError
from dropgen.platform.bench.step import bench_step, contenders_of, prepare
from dropgen.platform.methods import METHODS
from dropgen.platform.training.batches import PREFETCH
from dropgen.platform.training.contender import STEPS, Contender

TINY = ("--network.base=1", "--network.downs=1", "--training.batch=1")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    folder = tmp_path_factory.mktemp("step")
    return prepare(folder, 8, TINY), folder


@pytest.fixture(scope="module")
def measured(prepared: tuple[Experiment, Path]) -> tuple[list[Contender], list[dict[str, Any]], int]:
    contenders, _ = contenders_of(*prepared)
    blocks: list[None] = []
    rows = bench_step(contenders, 5, lambda: blocks.append(None))
    return contenders, rows, len(blocks)


def test_erm_and_every_p_with_stored_and_online_features_have_a_row(measured: Any) -> None:
    _, rows, _ = measured
    assert {(row["method"], row["features"]) for row in rows} == {
        ("erm", "none"), ("dropgen p=0.5", "stored"), ("dropgen p=0.75", "stored"),
        ("dropgen p=0.5", "online"), ("dropgen p=0.75", "online"),
    }  # fmt: skip
    assert len(rows) == 5


def test_a_row_is_told_from_its_raw_values(measured: Any) -> None:
    _, rows, blocks = measured
    assert blocks == 25
    (erm,) = (row["median_s"] for row in rows if row["method"] == "erm")
    for row in rows:
        assert len(row["raw_s"]) == 5
        assert row["median_s"] == median(row["raw_s"])
        assert row["ratio_to_erm"] == pytest.approx(row["median_s"] / erm)
        assert 0 <= row["data_wait"] <= 1


def test_every_contender_trains_equally_many_new_steps_and_leaves_no_loader_behind(measured: Any) -> None:
    contenders, _, _ = measured
    for contender in contenders:
        assert contender.step == 5 * (PREFETCH + STEPS)
        assert contender.learner.scheduler.last_epoch == contender.step
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_online_and_stored_differ_in_their_batches_source_alone(measured: Any) -> None:
    contenders, _, _ = measured
    for contender in contenders:
        assert contender.batches.online_share == (contender.features != "stored")
        assert (contender.batches.extractor is None) == (contender.method == "erm")
        assert contender.batches.augmentation.affine
        assert contender.batches.augmentation.intensity


def test_other_crops_for_online_features_end_the_run_before_a_step(prepared: tuple[Experiment, Path]) -> None:
    contenders, _ = contenders_of(*prepared)
    spoiled = copy.copy(contenders[-1])
    spoiled.batches = replace(spoiled.batches, plan=replace(spoiled.batches.plan, seed=9))
    with pytest.raises(StoreError, match=r"dropgen p=0.75: stored and online features come with other crops"):
        bench_step([*contenders[:-1], spoiled], 5)
    assert [contender.step for contender in contenders] == [0] * 5


def test_a_run_without_erm_or_with_few_repeats_is_refused(prepared: tuple[Experiment, Path]) -> None:
    contenders, _ = contenders_of(*prepared)
    with pytest.raises(ConfigError, match="compares with ERM"):
        bench_step(contenders[1:], 5)
    with pytest.raises(ConfigError, match="--repeats = 1"):
        bench_step(contenders, 1)


def test_a_crop_that_the_network_cannot_take_is_refused_before_features_are_computed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop axis x = 8 voxels does not fit 5 downsamplings"):
        prepare(tmp_path, 8, ())
    assert not (tmp_path / "store").exists()


def test_every_method_has_a_contender_or_a_row_that_says_why_not(tmp_path: Path) -> None:
    experiment = prepare(tmp_path, 8, TINY, "all")
    contenders, unavailable = contenders_of(experiment, tmp_path)
    timed = {contender.method for contender in contenders}
    absent = {row["method"]: row["unavailable"] for row in unavailable}
    assert timed | set(absent) == set(METHODS)
    assert not timed & set(absent)
    assert absent["finetune_scratch"].startswith("crop axis x = 8 voxels does not fit")
    sources: dict[str, set[str]] = {contender.method: set() for contender in contenders}
    for contender in contenders:
        sources[contender.method].add(contender.features)
    assert sources["dropgen"] == {"stored", "online"}
    assert sources["dropgen+mixup"] == {"online"}
    assert sources["gin_ipa"] == {"none"}


def test_named_methods_are_timed_beside_erm(tmp_path: Path) -> None:
    contenders, _ = contenders_of(prepare(tmp_path, 8, TINY, "mixup,gin"), tmp_path)
    assert [contender.method for contender in contenders] == ["erm", "gin", "mixup"]
    with pytest.raises(ConfigError, match="did you mean 'mixup'"):
        prepare(tmp_path, 8, TINY, "mixpu")
