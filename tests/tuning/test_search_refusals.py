"""What a search refuses, and what it need not do, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.errors import ConfigError, DivergenceError, ResourceError
from dropgen.manifest import write_json
from dropgen.platform.train import Workbench, trials_of
from dropgen.platform.training.trial import DIVERGED
from dropgen.tuning.scheduling import STOPPED
from dropgen.tuning.search import exclusive, search
from tests_support.tiny import tiny_experiment

NOWHERE = "127.0.0.1:1"  # no cluster answers there


def test_an_early_stopped_trial_counts_as_done(root: Path) -> None:
    experiment = tiny_experiment(root, methods=[{"name": "erm"}])
    bench = Workbench.open(experiment, root)
    folder = bench.folder(trials_of(experiment)[0])
    write_json(folder / STOPPED, {"label": "erm seed=1", "step": 3, "val_dice": 0.1, "why": "ASHA"})
    with pytest.raises(ResourceError, match="no trial of 'tiny' finished"):
        search(experiment, root, address=NOWHERE)


def test_a_diverged_trial_counts_as_done_and_is_named_where_no_other_finished(root: Path) -> None:
    experiment = tiny_experiment(root, methods=[{"name": "erm"}])
    bench = Workbench.open(experiment, root)
    folder = bench.folder(trials_of(experiment)[0])
    write_json(folder / DIVERGED, {"label": "erm seed=1", "step": 3, "why": "erm: loss is nan at step 3"})
    with pytest.raises(DivergenceError, match="every trial of 'tiny' diverged, erm seed=1: erm: loss is nan at step 3"):
        search(experiment, root, address=NOWHERE)


def test_a_cluster_that_does_not_answer_is_one_sentence_with_the_command(root: Path) -> None:
    with pytest.raises(ResourceError, match="ray start --head"):
        search(tiny_experiment(root, methods=[{"name": "erm"}]), root, address=NOWHERE)


def test_p_out_of_range_is_refused_before_anything_is_written(root: Path) -> None:
    with pytest.raises(ConfigError, match="1"):
        search(tiny_experiment(root, methods=[{"name": "dropgen", "p": [0.5, 1.0]}]), root)
    assert not (root / "tiny").exists()


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = tmp_path / "search.lock"
    with exclusive(lock), pytest.raises(ResourceError, match="another search"), exclusive(lock):
        pass
    with exclusive(lock):
        pass
