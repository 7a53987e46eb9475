"""A trial's extractor is built where its crops are, whatever the workbench was opened for.

"cpu:0" stands for an accelerator: a device of another name than the workbench's, on which everything really runs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from torch import Tensor

from dropgen.features.extractors import EXTRACTORS
from dropgen.features.extractors.identity import Identity
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training import trial as trial_module
from tests_support.tiny import tiny_bench

ELSEWHERE = "cpu:0"


class Placed(Identity):
    """The image as features; remembers where each one was built and how often it was called."""

    name = "placed"
    built: ClassVar[list[str]] = []
    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.device = device
        self.built.append(device)

    def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
        self.calls[self.device] += 1
        return super().__call__(image_b1xyz, stats)


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """Opened, with `features.source` as the parameter says."""
    monkeypatch.setitem(EXTRACTORS, "placed", Placed)
    features = {"extractor": {"name": "placed"}, "source": request.param}
    bench = tiny_bench(tmp_path, features=features, training={"steps": 2, "validate_every": 2})
    Placed.built.clear()
    Placed.calls.clear()
    return bench


@pytest.mark.parametrize("bench", ["online", "stored"], indirect=True)
def test_all_features_of_a_trial_are_made_where_its_crops_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "choose_device", lambda wanted: ELSEWHERE)
    train_trial(bench, trials_of(bench.experiment)[0])
    assert Placed.built == [ELSEWHERE]
    assert set(Placed.calls) <= {ELSEWHERE}
    if bench.experiment.features.source == "online":
        assert Placed.calls[ELSEWHERE] >= 2


@pytest.mark.parametrize("bench", ["online"], indirect=True)
def test_a_workbench_builds_a_second_extractor_only_for_another_device(bench: Workbench) -> None:
    assert bench.on("cpu") is bench
    assert Placed.built == []
    moved = bench.on(ELSEWHERE)
    assert Placed.built == [ELSEWHERE]
    assert moved.extractor is not bench.extractor
    trial = trials_of(bench.experiment)[0]
    assert moved.key(trial) == bench.key(trial)


def test_without_features_there_is_nothing_to_move(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": "erm"}])
    assert bench.on(ELSEWHERE) is bench
