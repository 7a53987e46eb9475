"""Where pretrained weights enter a trial: before its first step, and in its key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from dropgen.errors import WeightsError
from dropgen.platform.methods import METHODS
from dropgen.platform.methods.method import Method
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import train_trial, trials_of
from tests_support.tiny import tiny_bench


@dataclass(frozen=True)
class FromTens(Method):
    """Starts with a head of tens."""

    file: str = "one"

    name: ClassVar[str] = "from_tens"
    acts_on: ClassVar[str] = "layers"
    source: ClassVar[str] = "this test"
    content: ClassVar[dict[str, str]] = {}

    def pretrained(self) -> str:
        if self.file not in self.content:
            raise WeightsError(f"no file '{self.file}'")
        return self.content[self.file]

    def initialise(self, network: nn.Module) -> None:
        nn.init.constant_(list(network.parameters())[-1], 10.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "from_tens", FromTens)
    monkeypatch.setattr(FromTens, "content", {"one": "a"})


def test_training_starts_from_what_the_method_initialises(tmp_path: Path) -> None:
    settings = {"steps": 1, "learning_rate": 1e-6}
    bench = tiny_bench(tmp_path, methods=[{"name": "from_tens"}], training=settings)
    (trial,) = trials_of(bench.experiment)
    head = list(Segmenter.load(Path(train_trial(bench, trial)["bundle"])).network.parameters())[-1]
    assert torch.allclose(head, torch.full_like(head, 10.0), atol=1e-3)


def test_another_file_under_the_same_name_is_another_trial(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": "from_tens"}])
    (trial,) = trials_of(bench.experiment)
    before = bench.key(trial)
    FromTens.content["one"] = "b"
    assert bench.key(trial) != before


def test_missing_weights_are_found_when_the_experiment_is_opened(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file 'two'"):
        tiny_bench(tmp_path, methods=[{"name": "from_tens", "file": "two"}])
