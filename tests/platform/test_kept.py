"""The checkpoints that a trial keeps beside the chosen one: nothing is trained otherwise for their sake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropgen.config import Component, Trial
from dropgen.errors import CheckpointError
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.bundle import read_bundle
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.kept import Checkpoint, load_kept
from dropgen.platform.evaluation.touches import read_touches
from dropgen.platform.train import Progress, Workbench, train_trial
from dropgen.platform.training.checkpoint import load_checkpoint
from tests_support.tiny import tiny_bench

DROPGEN = Trial(method=Component.of("dropgen", p=0.5), seed=1)
CHECKPOINTS: tuple[Checkpoint, ...] = ("chosen", "last", "source_rule")


def two_rules(root: Path, rule: str = "target_validation", columns: bool = True) -> Workbench:
    """A study whose first validation case is of the training domain."""
    bench = tiny_bench(root, selection={"rule": "target_validation", "columns": columns})
    first, *_ = bench.study.split("val")
    (domain,) = bench.study.train_domains
    cases = tuple(replace(case, domain=domain) if case == first else case for case in bench.study.cases)
    selection = bench.experiment.selection.model_copy(update={"rule": rule})
    experiment = bench.experiment.model_copy(update={"selection": selection})
    return replace(bench, experiment=experiment, study=replace(bench.study, cases=cases))


def require_same_weights(one: Path, other: Path) -> None:
    ours, theirs = read_bundle(one)[1], read_bundle(other)[1]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_rule_that_only_watches_changes_neither_key_nor_training(tmp_path: Path) -> None:
    plain, watched = two_rules(tmp_path / "plain", columns=False), two_rules(tmp_path / "watched")
    assert plain.key(DROPGEN) == watched.key(DROPGEN)
    one, other = train_trial(plain, DROPGEN), train_trial(watched, DROPGEN)
    assert one["source_rule"] is None
    assert not (plain.folder(DROPGEN) / "bundle-source").exists()
    assert other["curve"] == one["curve"]
    require_same_weights(Path(one["bundle"]), Path(other["bundle"]))


def test_its_choice_is_what_a_training_under_that_rule_keeps(tmp_path: Path) -> None:
    watched, ruled = two_rules(tmp_path / "watched"), two_rules(tmp_path / "ruled", rule="source_validation")
    assert len(validation_cases(ruled.study, "source_validation")) == 1
    found, expected = train_trial(watched, DROPGEN)["source_rule"], train_trial(ruled, DROPGEN)
    assert expected["source_rule"] is None
    assert found == {"step": expected["best_step"], "val_dice": expected["val_dice"]}
    require_same_weights(watched.folder(DROPGEN) / "bundle-source", Path(expected["bundle"]))


def test_what_watched_only_a_part_of_the_training_is_no_choice(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(two_rules(tmp_path, columns=False), DROPGEN, interrupt)
    result = train_trial(two_rules(tmp_path), DROPGEN)
    assert result["resumed"] == [3]
    assert result["source_rule"] is None


def test_a_resumed_trial_reports_what_was_validated_before(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path)
    told: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        told.append(progress)
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(bench, DROPGEN, interrupt)
    assert [(progress.step, progress.validated_step) for progress in told] == [(1, 0), (2, 0), (3, 3), (4, 3)]
    resumed: list[Progress] = []
    result = train_trial(bench, DROPGEN, resumed.append)
    assert (resumed[0].step, resumed[0].validated_step, resumed[0].best_dice) == (5, 3, told[2].val_dice)
    assert result["resumed"] == [4]


def test_every_checkpoint_is_tested_in_a_folder_and_with_a_touch_of_its_own(tmp_path: Path) -> None:
    bench = two_rules(tmp_path)
    train_trial(bench, DROPGEN)
    folder = bench.folder(DROPGEN)
    state = load_checkpoint(folder / "last.ckpt")
    assert state is not None
    assert state["step"] == bench.experiment.training.steps
    last = load_kept(bench, DROPGEN, "last", "cpu").network.state_dict()
    assert all(torch.equal(value, state["network"][name]) for name, value in last.items())
    for checkpoint in CHECKPOINTS:
        evaluate_trial(bench, DROPGEN, checkpoint=checkpoint)
    found = {path.name for path in folder.glob("evaluation*")}
    assert found == {"evaluation", "evaluation@last", "evaluation@source_rule"}
    assert [touch.checkpoint for touch in read_touches(tmp_path / "tiny")] == list(CHECKPOINTS)
    evaluate_trial(bench, DROPGEN, checkpoint="last")
    assert len(read_touches(tmp_path / "tiny")) == 3


def test_a_checkpoint_that_was_not_kept_is_named(tmp_path: Path) -> None:
    bench = two_rules(tmp_path, columns=False)
    train_trial(bench, DROPGEN)
    with pytest.raises(CheckpointError, match=r"lacks .*bundle-source.segmenter\.json; delete its folder"):
        evaluate_trial(bench, DROPGEN, checkpoint="source_rule")
    assert read_touches(tmp_path / "tiny") == []
