from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dropgen.config import Experiment
from dropgen.errors import ConfigError
from dropgen.tuning.run import run
from tests_support.standin import StandIn
from tests_support.tiny import tiny_experiment

METHODS = [{"name": "erm"}, {"name": "nnunet", "epochs": 1}]


@pytest.fixture
def experiment(root: Path) -> Experiment:
    return tiny_experiment(root, methods=METHODS)


@pytest.mark.slow
def test_nnunet_is_a_row_of_the_table_and_never_the_registered_model(
    experiment: Experiment, root: Path, standin: StandIn, ray_session: Any
) -> None:
    summary = run(experiment, root)
    assert [row["method"] for row in summary["table"]] == ["erm", "nnunet"]
    ours, theirs = summary["table"]
    assert set(theirs) == set(ours)
    assert theirs["target_dice"].keys() == ours["target_dice"].keys()
    assert summary["champion"]["label"].startswith("erm")
    page = Path(summary["report"]).read_text()
    assert "nnU-Net epochs = 1" in page
    assert len(standin.calls()) == 5

    again = run(experiment, root)
    assert again["table"] == summary["table"]
    assert "external" in again["skipped"]
    assert len(standin.calls()) == 5


def test_a_run_that_lacks_the_extra_is_refused_before_any_work(
    experiment: Experiment, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropgen.platform.external.nnunet.program", lambda command: None)
    with pytest.raises(ConfigError, match=r"method nnunet cannot run: the extra dropgen\[nnunet\] is not installed"):
        run(experiment, root)
    assert not (root / experiment.name).exists()
