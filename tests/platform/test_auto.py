"""`features.source: auto`: timed once, kept for ever, never a reason to train anything twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dropgen.__main__ import main
from dropgen.config import Component, to_json
from dropgen.errors import CheckpointError
from dropgen.manifest import read_json
from dropgen.platform.methods import build
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training import auto
from dropgen.platform.training.auto import settle
from dropgen.platform.training.choice import Choice
from dropgen.platform.training.trial import make_batches
from dropgen.platform.training.workers import Workers
from tests_support.tiny import fill_store, tiny_experiment

AUTO = {"source": "auto"}
MIXED = Component.of("dropgen+cutout", p=0.5)


def records(root: Path) -> list[Path]:
    return sorted((root / "tiny" / "features").glob("*.json"))


def opened(root: Path, source: str, **changes: Any) -> Workbench:
    """A workbench where "auto" has come to a source."""
    experiment = tiny_experiment(root, features=AUTO, **changes)
    settle(experiment, root)
    (record,) = records(root)
    choice = Choice.read(record)
    assert choice is not None
    replace(choice, source=source).write(record)
    return Workbench.open(experiment, root)


def test_both_sources_are_timed_on_a_covered_store_and_the_faster_is_kept_with_its_reason(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(root, features=AUTO)
    settle(experiment, root)
    choice = Workbench.open(experiment, root).choice
    assert choice is not None
    assert choice.stored_s is not None
    assert choice.online_s is not None
    assert choice.source == ("stored" if choice.stored_s <= choice.online_s else "online")
    assert choice.disk_bytes == sum(path.stat().st_size for path in root.glob("store/features/*/c.*"))
    for part in (f"features {choice.source}: ", f"{choice.stored_s:.3g} s a step stored",
                 f"{choice.online_s:.3g} s a step online", "on disk"):  # fmt: skip
        assert part in choice.why
    assert capsys.readouterr().out.splitlines() == [choice.why]


def test_a_choice_is_made_once_whatever_is_added_to_the_experiment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(tiny_experiment(root, features=AUTO), root)
    before = [(path, path.read_bytes()) for path in records(root)]
    monkeypatch.setattr(auto, "_time", lambda *_: pytest.fail("it was timed again"))
    more = tiny_experiment(root, features=AUTO, methods=[{"name": "rep_only"}, {"name": "dropgen", "p": 0}], seeds=[3])
    settle(more, root)
    assert [(path, path.read_bytes()) for path in records(root)] == before


def test_another_choice_is_made_only_where_all_trials_are_trained_anew(root: Path) -> None:
    first = opened(root, "stored")
    longer = tiny_experiment(root, features=AUTO, training={"steps": 7})
    settle(longer, root)
    assert len(records(root)) == 2
    (trial,) = trials_of(longer)
    assert Workbench.open(longer, root).key(trial) != first.key(trial)


@pytest.mark.parametrize("source", ["stored", "online"])
def test_what_auto_came_to_is_the_very_trial_of_an_experiment_that_says_so(root: Path, source: str) -> None:
    chosen = opened(root, source)
    said = Workbench.open(tiny_experiment(root, features={"source": source}), root)
    (trial,) = trials_of(chosen.experiment)
    assert chosen.key(trial) == said.key(trial)
    result = train_trial(chosen, trial)
    assert result["features"] == source
    assert train_trial(said, trial) == result
    left = read_json(Path(result["folder"]) / "trial.json")
    assert left["features"] == source
    assert left["choice"]["why"] == chosen.choice.why  # type: ignore[union-attr]
    scope = Segmenter.load(Path(result["bundle"])).spec.feature_scope
    assert scope == ("volume" if source == "stored" else "window")


def test_a_method_that_needs_online_features_has_them_beside_one_with_stored(root: Path) -> None:
    bench = opened(root, "stored", methods=[{"name": "dropgen", "p": 0.5}, to_json(MIXED), {"name": "erm"}])
    assert [bench.source(build(trial.method)) for trial in trials_of(bench.experiment)] == ["stored", "online", None]
    dropgen, mixed, _ = trials_of(bench.experiment)
    for trial, stored in ((dropgen, True), (mixed, False)):
        made = make_batches(bench, trial, build(trial.method), 12, Workers(), "cpu")
        assert made.online_share == (0 if stored else 1)
    case = bench.study.split("val")[0]
    assert bench.stored(case, build(dropgen.method))[1] is not None
    assert bench.stored(case, build(mixed.method))[1] is None
    online = Workbench.open(tiny_experiment(root, features={"source": "online"}, methods=[to_json(MIXED)]), root)
    assert bench.key(mixed) == online.key(mixed)


def test_a_store_without_all_features_means_online_says_how_to_have_stored_and_stays(root: Path) -> None:
    shutil.rmtree(next((root / "store" / "features").iterdir()))
    experiment = tiny_experiment(root, features=AUTO)
    settle(experiment, root)
    bench = Workbench.open(experiment, root)
    choice = bench.choice
    assert choice is not None
    assert (choice.source, choice.stored_s, choice.online_s) == ("online", None, None)
    cases = len(bench.study.cases)
    assert f"features online: the store lacks those of 1 of {cases} cases" in choice.why
    assert "run `dropgen precompute EXPERIMENT`" in choice.why
    fill_store(tiny_experiment(root), root)
    settle(experiment, root)
    assert Workbench.open(experiment, root).choice == choice


def test_without_a_method_that_leaves_it_open_there_is_nothing_to_choose(root: Path) -> None:
    for methods in ([{"name": "erm"}], [to_json(MIXED)]):
        experiment = tiny_experiment(root, features=AUTO, methods=methods)
        settle(experiment, root)
        assert Workbench.open(experiment, root).choice is None
    assert not records(root)


def test_nothing_but_a_training_chooses(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"features\.source = 'auto' of experiment 'tiny'.*dropgen train"):
        Workbench.open(tiny_experiment(root, features=AUTO), root)


def test_the_verb_train_leaves_the_choice_in_its_manifest(root: Path) -> None:
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(tiny_experiment(root, features=AUTO))))
    assert main(["train", str(path), "--root", str(root)]) == 0
    (record,) = records(root)
    assert read_json(root / "tiny" / "train.manifest.json")["stages"]["features"]["result"] == read_json(record)
