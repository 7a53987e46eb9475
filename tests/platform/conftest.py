"""Two trials, trained for a few steps and evaluated once for all tests that look at results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dropgen.config import Trial
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.train import Workbench, train_trial, trials_of
from tests_support.tiny import tiny_bench


@dataclass(frozen=True)
class Evaluated:
    """An experiment whose trials are trained and evaluated."""

    bench: Workbench
    trials: tuple[Trial, ...]
    results: list[dict[str, Any]]
    summaries: list[dict[str, Any]]


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    root = tmp_path_factory.mktemp("evaluated")
    methods = [{"name": "erm"}, {"name": "dropgen", "p": 0.25}]
    bench = tiny_bench(root, methods=methods, seeds=[1], training={"steps": 12, "validate_every": 6})
    trials = trials_of(bench.experiment)
    results = [train_trial(bench, trial) for trial in trials]
    return Evaluated(bench, trials, results, [evaluate_trial(bench, trial) for trial in trials])
