from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dropgen.__main__ import main
from dropgen.config import Network, load_experiment
from dropgen.errors import WeightsError
from dropgen.features.studies.study import Study, load_study
from dropgen.platform.methods import METHODS
from dropgen.platform.training.bench import require_trainable, trials_of
from tests_support.tiny import tiny_experiment


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    return load_study(tiny_experiment(root).study, root)


def test_every_registered_method_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_printed_experiment_can_be_trained_and_searches_the_whole_space(
    name: str, study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["methods", "--yaml", name]) == 0
    path = tmp_path / "experiment.yaml"
    path.write_text(capsys.readouterr().out)
    experiment = load_experiment(path, tmp_path)
    tried = [trial.method.options for trial in trials_of(experiment) if trial.method.name == name]
    for option, values in METHODS[name].search_space.items():
        assert {options[option] for options in tried} == set(values)
    assert tried
    small = experiment.model_copy(update={"network": Network(base=2, downs=2)})
    large = dataclasses.replace(study, crop=(32, 32, 32))
    if name in ("finetune_extractor", "finetune_decoder"):
        with pytest.raises(WeightsError, match="anatomix"):
            require_trainable(small, large)
    else:
        assert len(require_trainable(small, large)) == len(trials_of(experiment))


def test_an_unknown_method_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--yaml", "dropgn"]) == 2
    assert "did you mean 'dropgen'" in capsys.readouterr().err
