"""Methods under intensity rules of their own: what differs, what does not, and who is compared with whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropgen.config import Component, Trial
from dropgen.errors import ConfigError
from dropgen.features.studies.study import load_study, under_rule
from dropgen.manifest import read_json
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.results import chosen_of_each, group_rows, rules_note
from dropgen.platform.methods import build
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.bench import require_trainable
from dropgen.tuning.summary import headline
from tests_support.tiny import tiny_bench, tiny_experiment


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    methods = [{"name": "erm"}, {"name": "erm", "intensity": ["minmax", "zscore"]}]
    return tiny_bench(tmp_path_factory.mktemp("rules"), methods=methods)


def trial(bench: Workbench, rule: str | None) -> Trial:
    (found,) = [one for one in trials_of(bench.experiment) if one.intensity == rule]
    return found


def test_weights_that_know_unit_scale_are_refused_other_intensities_before_they_are_looked_for(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    study = dataclasses.replace(load_study(experiment.study, tmp_path), crop=(32, 32, 32))
    given = (Component.of("finetune_decoder", intensity="zscore"), Component.of("finetune_decoder"))
    studies = (study, dataclasses.replace(study, intensity={"ct": "hu", "mr": "zscore"}))
    for method, scaled in zip(given, studies, strict=True):
        one = experiment.model_copy(update={"methods": (method,)})
        with pytest.raises(
            ConfigError, match=r"finetune_decoder starts from weights that know intensities in \[0, 1\]"
        ):
            require_trainable(one, scaled)
    scratch = experiment.model_copy(update={"methods": (Component.of("finetune_scratch", intensity="zscore"),)})
    require_trainable(scratch, study)


def test_a_method_is_the_same_under_every_rule() -> None:
    assert build(Component.of("dropgen", p=0.5, intensity="zscore")) == build(Component.of("dropgen", p=0.5))
    with pytest.raises(ConfigError, match="intensity rule 'zscores' is unknown; did you mean 'zscore'"):
        build(Component.of("erm", intensity="zscores"))


def test_the_studys_own_rule_by_name_is_the_same_training(bench: Workbench) -> None:
    plain, named = (train_trial(bench, trial(bench, rule)) for rule in (None, "minmax"))
    assert plain["curve"] == named["curve"]
    assert plain["key"] != named["key"]
    assert bench.under(trial(bench, "minmax")).index == bench.index


def test_another_rule_trains_predicts_and_is_served_on_volumes_of_its_own(bench: Workbench) -> None:
    ruled = bench.under(trial(bench, "zscore"))
    case = bench.study.split("val")[0]
    one, other = bench.stored(case)[0], ruled.stored(case)[0]
    assert (one.shift, one.scale) == ((0,), (1,))
    channel = (other.unit[0] - other.shift[0]) / other.scale[0]
    assert (float(channel.mean()), float(channel.std())) == pytest.approx((0, 1), abs=1e-3)
    assert np.array_equal(bench.stored(case)[2], ruled.stored(case)[2])
    result = train_trial(bench, trial(bench, "zscore"))
    assert result["options"] == {"intensity": "zscore"}
    assert read_json(Path(result["bundle"]) / "segmenter.json")["spec"]["intensity"] == "zscore"
    summary = evaluate_trial(bench, trial(bench, "zscore"))
    assert evaluate_trial(bench, trial(bench, "zscore")) == summary
    plain = evaluate_trial(bench, trial(bench, None))
    assert evaluate_trial(bench, trial(bench, "minmax"))["target_dice"] == plain["target_dice"]


def test_hounsfield_units_are_for_ct_alone(bench: Workbench) -> None:
    def study(modality: str | None) -> Any:
        cases = tuple(dataclasses.replace(case, modality=modality) for case in bench.study.cases)
        return dataclasses.replace(bench.study, cases=cases)

    assert under_rule(study("ct"), "hu").intensity == "hu"
    assert under_rule(study(None), "hu").intensity == "hu"
    with pytest.raises(ConfigError, match=r"hu is for CT, and case .* is mr"):
        under_rule(study("mr"), "hu")


def row(method: str, val: float, unseen: float, **options: Any) -> dict[str, Any]:
    return {
        "method": method, "p": None, "options": options, "seed": 1, "val_dice": val, "source_dice": 0.8,
        "selected": method == "dropgen", "target_dice": {"far": unseen}, "adaptation": None, "evaluation": "evaluation",
    }  # fmt: skip


ROWS = [
    row("erm", 0.2, 0.24, intensity="minmax"),
    row("erm", 0.7, 0.78, intensity="zscore"),
    row("dropgen", 0.6, 0.70, p=0.5),
]


def test_every_method_is_compared_under_its_best_rule_on_validation() -> None:
    assert [group.name for group in chosen_of_each(group_rows(ROWS))] == [
        "ERM intensity = zscore", "DropGen p = 0.5"
    ]  # fmt: skip
    assert headline(ROWS).startswith("ERM intensity = zscore wins with 78.0 Dice against 70.0 of DropGen p = 0.5")


def test_the_rule_of_every_method_is_told() -> None:
    assert rules_note(group_rows(ROWS), "minmax") == (
        "Intensities are scaled by: ERM zscore (of 2), DropGen minmax; where a method tried several rules, its best on "
        "validation."
    )
    assert rules_note(group_rows(ROWS[2:]), {"mr": "minmax", "ct": "hu"}) == (
        "Intensities of every method that is trained here are scaled by ct: hu, mr: minmax."
    )
