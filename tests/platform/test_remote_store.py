"""Training from an object store is training from a folder, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.platform.train import train_trial, trials_of
from tests_support.s3 import S3Bucket
from tests_support.tiny import tiny_bench


@pytest.mark.slow
def test_a_trial_has_the_same_key_and_learns_the_same_wherever_its_features_lie(
    bucket: S3Bucket, tmp_path: Path
) -> None:
    local = tiny_bench(tmp_path / "local")
    remote = tiny_bench(tmp_path / "remote", features={"store": bucket.url})
    (trial,) = trials_of(local.experiment)
    assert remote.store.location == bucket.url
    assert local.key(trial) == remote.key(trial)
    here, there = train_trial(local, trial), train_trial(remote, trial)
    assert here["curve"] == there["curve"]
    assert here["val_dice"] == there["val_dice"]
