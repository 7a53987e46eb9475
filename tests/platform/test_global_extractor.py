"""Features that depend on the whole volume: stored once, trained on, and found again where a volume is segmented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen.features.extractors.anatomix import DEV, VARIANTS
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import train_trial, trials_of
from tests_support.tiny import tiny_bench


@pytest.mark.slow
def test_a_trial_trains_on_stored_features_of_a_global_extractor_and_its_bundle_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, DEV.name, replace(DEV, base=2))
    torch.manual_seed(0)
    torch.save(VARIANTS[DEV.name].network().state_dict(), tmp_path / DEV.file_name)
    extractor = {"name": "anatomix", "variant": DEV.name, "weights": str(tmp_path / DEV.file_name)}
    bench = tiny_bench(tmp_path, features={"extractor": extractor}, training={"steps": 2, "validate_every": 2})
    assert bench.extractor is not None
    assert bench.extractor.locality == "global"
    (trial,) = trials_of(bench.experiment)
    result = train_trial(bench, trial)
    assert result["features"] == "stored"
    assert np.isfinite([loss for _, loss in result["curve"]["loss"]]).all()

    segmenter = Segmenter.load(Path(result["bundle"]))
    assert segmenter.spec.feature_scope == "volume"
    prepared, features, label = bench.stored(bench.study.split("test")[0], segmenter.method)
    mask = segmenter.predict_prepared(prepared, features)
    assert mask.shape == label.shape
    assert np.array_equal(segmenter.predict_prepared(prepared), mask)
