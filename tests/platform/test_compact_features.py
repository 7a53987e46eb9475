"""Training and validation read int8 features as they read float32 ones, within the error of one byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.extractors import extract
from dropgen.features.extractors.mind import Mind
from dropgen.platform.methods import build
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.batches import Batches
from dropgen.platform.training.plan import SamplePlan
from tests_support.tiny import tiny_bench


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workbench]:
    root = tmp_path_factory.mktemp("compact")
    return {dtype: tiny_bench(root, features={"dtype": dtype}) for dtype in ("float32", "int8")}


def batches(bench: Workbench) -> Batches:
    method = build(Component.of("dropgen", p=0.25))
    cases = bench.study.split("train")
    shapes = {case.id: bench.store.volume(bench.index.keys[case.id].volume).shape for case in cases}
    plan = SamplePlan(1, shapes, (16, 16, 16), lambda generator: method.draw(generator, 12), True, True, 0.5)
    keys = {case.id: bench.index.keys[case.id] for case in cases}
    augmentation = bench.experiment.training.augmentation
    return Batches(plan, (0, 1), method, 3, bench.store, keys, Mind(), 0, augmentation, "cpu")


def test_a_batch_differs_only_in_its_features_and_there_by_less_than_a_hundredth(
    benches: dict[str, Workbench],
) -> None:
    for step in range(8):
        exact, compact = (batches(benches[dtype]).at(step) for dtype in ("float32", "int8"))
        assert torch.equal(exact.image_bcxyz, compact.image_bcxyz)
        assert torch.equal(exact.label_bcxyz, compact.label_bcxyz)
        assert exact.features_bcxyz is not None
        assert compact.features_bcxyz is not None
        assert compact.features_bcxyz.dtype == torch.float32
        assert (exact.features_bcxyz - compact.features_bcxyz).square().mean().sqrt() < 1e-2
        dropped = ~exact.kept_bc[:, 1:]
        assert not compact.features_bcxyz[dropped].any()


def test_a_trial_trains_validates_and_predicts_from_them(benches: dict[str, Workbench]) -> None:
    bench = benches["int8"]
    (trial,) = trials_of(bench.experiment)
    result = train_trial(bench, trial)
    assert 0 <= result["val_dice"] <= 1
    segmenter = Segmenter.load(Path(result["bundle"]))
    keys = bench.index.keys[bench.study.split("val")[0].id]
    prepared = bench.store.volume(keys.volume)
    features = bench.store.features(keys.features or "").whole()
    raw, _ = extract(Mind(), prepared.unit)
    assert np.abs(features - raw).max() <= 0.5 / 255 + 1e-6
    agreement = segmenter.predict_prepared(prepared, features) == segmenter.predict_prepared(prepared)
    assert agreement.mean() > 0.98
