"""`dropgen evaluate --adapt` over real trials of a tiny study."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator

from dropgen.__main__ import main
from dropgen.config import Component, Trial, to_json
from dropgen.errors import CheckpointError, ConfigError
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.manifest import read_json
from dropgen.platform.adaptation import build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.adapted import choose_adapted
from dropgen.platform.evaluation.touches import read_touches
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench, train_trial, trials_of
from tests_support.tiny import tiny_bench

TENT = Component.of("tent", learning_rate=0.01, steps=1)
SFB = Component.of("sfb", steps=1, rounds=1)
ALPHA = Component.of("alpha")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    methods = [{"name": "erm"}, {"name": "rep_only"}, {"name": "dropgen", "p": [0, 0.5]}]
    bench = tiny_bench(tmp_path_factory.mktemp("adapted"), methods=methods, training={"steps": 4, "validate_every": 2})
    for trial in trials_of(bench.experiment)[:2]:
        train_trial(bench, trial)
    return bench


def erm(bench: Workbench) -> Trial:
    return trials_of(bench.experiment)[0]


def loaded(bench: Workbench, label: str) -> AdaptedSegmenter:
    """The segmenter that a summary's label describes."""
    model, stable = (Segmenter.load(bench.bundle(trial)) for trial in trials_of(bench.experiment)[:2])
    adaptation = build(Component.parse(label))
    return AdaptedSegmenter(adaptation, model, stable if adaptation.needs_stable else None)


@pytest.mark.parametrize("adapt", [TENT, SFB, ALPHA], ids=lambda adapt: adapt.name)
def test_the_masks_are_those_of_the_method_that_the_summary_names(bench: Workbench, adapt: Component) -> None:
    told: list[tuple[int, int]] = []
    summary = evaluate_trial(bench, erm(bench), lambda *now: told.append(now), adapt)
    folder = bench.folder(erm(bench)) / f"evaluation-{adapt.label}"
    assert read_json(folder / "summary.json") == summary
    assert summary["label"] == f"erm seed=1 + {adapt.label}"
    chosen = summary["adaptation"]
    assert chosen["stable"] == (None if adapt.name == "tent" else "rep_only seed=1")
    assert 0 <= chosen["val_dice"] <= 1
    assert adapt.options.items() <= chosen["options"].items()
    segmenter = loaded(bench, chosen["label"])
    for case in bench.study.split("test"):
        written = read_mask(folder / "masks" / f"{case.id}.nii.gz").array
        np.testing.assert_array_equal(written, segmenter.predict(read_volume(case.image), modality=case.modality))
    tried = {"tent": 2, "sfb": 3, "alpha": 11}[adapt.name] * len(bench.study.split("val"))
    assert told == [(done, tried + summary["cases"]) for done in range(1, tried + summary["cases"] + 1)]
    assert set(summary["domains"]) == {case.domain for case in bench.study.split("test")}


def test_a_finished_evaluation_is_read_and_the_plain_one_is_left_alone(bench: Workbench) -> None:
    plain = evaluate_trial(bench, erm(bench))
    first = evaluate_trial(bench, erm(bench), adapt=TENT)
    touches = read_touches(bench.root / "tiny")
    assert (bench.key(erm(bench)), TENT.label, "chosen") in {touch.model for touch in touches}
    told: list[tuple[int, int]] = []
    assert evaluate_trial(bench, erm(bench), lambda *now: told.append(now), TENT) == first
    assert not told
    assert read_touches(bench.root / "tiny") == touches
    assert read_json(bench.folder(erm(bench)) / "evaluation" / "summary.json") == plain
    assert "adaptation" not in plain


def test_no_test_label_takes_part_in_the_choice(bench: Workbench, tmp_path: Path) -> None:
    other = replace(bench, root=tmp_path)
    for trial in trials_of(bench.experiment)[:2]:
        shutil.copytree(bench.folder(trial), other.folder(trial), ignore=shutil.ignore_patterns("evaluation*"))
    blind = [replace(case, label=None) if case.split == "test" else case for case in bench.study.cases]
    test = {case.id for case in bench.study.split("test")}
    keys = {name: replace(key, label=None) if name in test else key for name, key in bench.index.keys.items()}
    other = replace(other, study=replace(bench.study, cases=tuple(blind)), index=replace(bench.index, keys=keys))
    chosen = evaluate_trial(other, erm(bench), adapt=ALPHA)
    assert chosen["scored"] == 0
    informed = evaluate_trial(bench, erm(bench), adapt=ALPHA)
    assert {**chosen["adaptation"], "seconds": 0} == {**informed["adaptation"], "seconds": 0}


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_validation_dice_of_one_model_alone_is_that_of_its_training(bench: Workbench, alpha: int) -> None:
    trained = read_json(bench.folder(trials_of(bench.experiment)[alpha]) / "result.json")
    summary = evaluate_trial(bench, erm(bench), adapt=Component.of("alpha", alpha=alpha))
    assert summary["adaptation"]["val_dice"] == pytest.approx(trained["val_dice"])


def test_an_untrained_partner_is_named_with_its_command(bench: Workbench, tmp_path: Path) -> None:
    other = replace(bench, root=tmp_path)
    shutil.copytree(bench.folder(erm(bench)), other.folder(erm(bench)))
    with pytest.raises(CheckpointError, match=r"'rep_only seed=1' .* not trained; run: dropgen train .*'rep_only'"):
        evaluate_trial(other, erm(bench), adapt=SFB)


def test_an_experiment_without_the_partner_is_told_to_add_it(bench: Workbench) -> None:
    lone = bench.experiment.model_copy(update={"methods": (Component.of("erm"),)})
    with pytest.raises(ConfigError, match=r"needs the trial 'rep_only seed=1' beside 'erm seed=1'.*add it to methods"):
        evaluate_trial(replace(bench, experiment=lone), erm(bench), adapt=SFB)


def test_only_suited_trials_are_adapted(bench: Workbench) -> None:
    trials = trials_of(bench.experiment)
    labels = {
        adapt.name: [trial.method.label for trial in choose_adapted(bench.experiment, trials, adapt)]
        for adapt in (TENT, SFB, ALPHA)
    }
    assert labels == {"tent": ["erm", "dropgen p=0"], "sfb": ["erm"], "alpha": ["erm"]}
    with pytest.raises(ConfigError, match=r"sfb is not meant for any of the chosen trials .*\(dropgen p=0.5\)"):
        choose_adapted(bench.experiment, trials[3:], SFB)


def test_the_verb_adapts_and_its_document_fits_the_schema(
    bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(bench.experiment)))
    words: list[Any] = ["evaluate", path, "--adapt", "alpha", "--root", bench.root, "--json"]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    schema = json.loads((Path(__file__).parents[3] / "dropgen" / "schema.json").read_text())
    Draft202012Validator({**schema, "$ref": "#/$defs/evaluate"}).validate(document)
    (entry,) = document["evaluations"]
    assert Path(entry["folder"]).name == "evaluation-alpha"
    assert "chose alpha alpha=" in captured.err
