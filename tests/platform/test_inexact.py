"""Whoever trains on stored features that no flip keeps exact hears of it before the first step, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dropgen.__main__ import main
from dropgen.config import to_json
from dropgen.platform.train import Workbench, trials_of
from dropgen.platform.training.inexact import warn_of_inexact
from tests_support.tiny import tiny_bench

WITHOUT = {"extractor": {"name": "random", "channels": 2}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return tiny_bench(tmp_path_factory.mktemp("inexact"), features=WITHOUT, training={"steps": 2, "validate_every": 2})


def test_training_says_it_once_and_what_to_do(bench: Workbench, capfd: pytest.CaptureFixture[str]) -> None:
    path = bench.root / "experiment.yaml"
    path.write_text(yaml.safe_dump(to_json(bench.experiment)))
    assert main(["train", str(path), "--root", str(bench.root)]) == 0
    told = capfd.readouterr().err
    assert told.count("random has no exact symmetry: after a flip or a quarter turn stored features are not") == 1
    assert "features.source = online computes them from the moved image instead." in told


def test_it_is_not_said_where_nothing_is_flipped(bench: Workbench, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = replace(bench, study=replace(bench.study, orientation_augmentation=False))
    warn_of_inexact(fixed, trials_of(fixed.experiment))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [{}, {"features": WITHOUT | {"source": "online"}}, {"features": WITHOUT, "methods": [{"name": "erm"}]}],
    ids=["an exact extractor", "online features", "no features"],
)
def test_it_is_not_said_of(tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    bench = tiny_bench(tmp_path, **changes)
    warn_of_inexact(bench, trials_of(bench.experiment))
    assert capsys.readouterr().err == ""
