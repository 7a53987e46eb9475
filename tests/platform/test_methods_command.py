from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.__main__ import main
from dropgen.config import load_experiment
from dropgen.platform.methods import METHODS
from dropgen.platform.training.bench import trials_of


def test_every_registered_method_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_printed_experiment_loads_and_searches_the_whole_space(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["methods", "--yaml", name]) == 0
    path = tmp_path / "experiment.yaml"
    path.write_text(capsys.readouterr().out)
    experiment = load_experiment(path, tmp_path)
    tried = [trial.method.options for trial in trials_of(experiment) if trial.method.name == name]
    for option, values in METHODS[name].search_space.items():
        assert {options[option] for options in tried} == set(values)
    assert tried


def test_an_unknown_method_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--yaml", "dropgn"]) == 2
    assert "did you mean 'dropgen'" in capsys.readouterr().err
