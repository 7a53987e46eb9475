"""Methods side by side: who takes part, and that what cannot run or diverges is a line, not a gap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dropgen.__main__ import main
from dropgen.config import Component, Experiment, to_json
from dropgen.errors import ConfigError
from dropgen.features.studies.study import load_study
from dropgen.manifest import read_json
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.catalogue import choose_names
from dropgen.platform.external import EXTERNALS
from dropgen.platform.methods import METHODS
from dropgen.tuning.comparison import Roster, roster
from dropgen.tuning.demo import demo_experiment
from tests_support.tiny import tiny_experiment

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "dropgen" / "schema.json").read_text())
ERM = [{"name": "erm"}]


def roster_of(experiment: Experiment, names: str = "all", defaults: bool = True) -> Roster:
    study = load_study(experiment.study, experiment.study.parent)
    known = (*METHODS, *ADAPTATIONS, *EXTERNALS)
    return roster(experiment, study, choose_names(names, known), defaults)


def labels(found: Roster) -> list[str]:
    return [method.label for method in found.experiment.methods]


def reasons(found: Roster) -> dict[str, str]:
    return {line["method"]: line["reason"] for line in found.unavailable}


def test_every_registered_method_takes_part_or_says_why_not(tmp_path: Path) -> None:
    found = roster_of(tiny_experiment(tmp_path, methods=ERM, features={"source": "online"}))
    able = {method.name for method in found.experiment.methods}
    assert able | set(reasons(found)) >= set(METHODS)
    assert not able & set(reasons(found))
    assert {adaptation.name for adaptation in found.experiment.adaptations} == set(ADAPTATIONS)
    assert set(reasons(found)) & set(METHODS) == {"finetune_extractor", "finetune_decoder", "finetune_scratch"}
    assert reasons(found)["finetune_scratch"].startswith("unavailable: crop axis x = 16 voxels does not fit")


def test_missing_weights_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    experiment = tiny_experiment(tmp_path, methods=ERM)
    study = replace(load_study(experiment.study, tmp_path), crop=(32, 32, 32))
    found = roster(experiment, study, ("erm", "finetune_decoder", "finetune_scratch"), True)
    assert labels(found) == ["erm", "finetune_scratch"]
    assert reasons(found)["finetune_decoder"].startswith("unavailable: anatomix weights not found")


def test_stored_features_and_another_predictor_are_reasons(tmp_path: Path) -> None:
    stored = reasons(roster_of(tiny_experiment(tmp_path, methods=ERM)))
    assert "features.source to 'online'" in stored["dropgen+mixup"]
    assert "dropgen+gin" not in stored
    segresnet = reasons(roster_of(tiny_experiment(tmp_path, methods=ERM, network={"name": "segresnet", "base": 8})))
    assert {name for name, reason in segresnet.items() if "reaches into the layers" in reason} == {
        name for name, method in METHODS.items() if method.needs_unet
    }


def test_without_the_extractor_what_needs_its_features_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    anatomix = roster_of(tiny_experiment(tmp_path, methods=ERM, features={"extractor": {"name": "anatomix"}}))
    lines = reasons(anatomix)
    assert {name for name in METHODS if METHODS[name].needs_features} <= set(lines)
    assert lines["erm+sfb"] == "unavailable: it needs rep_only"
    assert lines["dropgen+tent"] == "unavailable: it needs dropgen"
    assert [adaptation.name for adaptation in anatomix.experiment.adaptations] == ["tent"]


def test_a_test_time_method_brings_the_models_that_it_is_published_for(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, methods=ERM)
    assert labels(roster_of(experiment, "tent")) == ["erm", "dropgen p=0.0"]
    assert labels(roster_of(experiment, "alpha,sfb")) == ["erm", "rep_only"]
    assert labels(roster_of(experiment, "dropgen,tent")) == ["erm", "dropgen", "dropgen p=0.0"]
    whole = roster_of(experiment, "dropgen,tent", defaults=False).experiment
    assert [method.options for method in whole.methods] == [{}, {"p": [0.0, 0.25, 0.5, 0.75]}]
    assert whole.search.test == "chosen"


def test_what_the_experiment_lists_keeps_its_values(tmp_path: Path) -> None:
    methods = [{"name": "mixup", "p": 0.3}, {"name": "gin"}, {"name": "maskgen", "p": 0.1}]
    experiment = tiny_experiment(tmp_path, methods=methods)
    assert labels(roster_of(experiment, "mixup,cutout,dropgen")) == ["dropgen p=0.1", "mixup p=0.3", "cutout"]
    adapted = tiny_experiment(tmp_path, methods=ERM, adaptations=[{"name": "tent", "steps": 5}])
    found = roster_of(adapted, "tent,alpha").experiment.adaptations
    assert [adaptation.label for adaptation in found] == ["tent steps=5", "alpha"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [("erm,dropgn", "did you mean 'dropgen'"), ("erm,", "unknown method ''"), ("finetune_decoder", "none of")],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path: Path, names: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        roster_of(tiny_experiment(tmp_path, methods=ERM), names)


def test_a_value_out_of_range_is_a_mistake_and_no_obstacle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixup: p = 2"):
        roster_of(tiny_experiment(tmp_path, methods=[{"name": "mixup", "p": 2}]), "mixup,erm")


def test_defaults_without_methods_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--defaults", "--root", str(tmp_path)]) == 2
    assert "--defaults belongs to --methods" in capsys.readouterr().err


def test_the_demo_compares_whatever_can_run_on_its_study(tmp_path: Path) -> None:
    found = roster_of(demo_experiment(tmp_path, (), "methods-demo"))
    assert set(reasons(found)) <= {"finetune_extractor", "finetune_decoder", "finetune_scratch", "nnunet"}
    assert Component.of("dropgen", p=0.0) in found.experiment.methods


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_session")
def test_a_comparison_is_one_table_with_every_method_and_every_reason(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [{"name": "erm"}, {"name": "gin_ipa", "weight": 1e300}]  # the loss of the second is no number
    sfb = {"name": "sfb", "steps": 1, "rounds": 1, "learning_rate": 1e-4}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(tiny_experiment(root, methods=methods, adaptations=[sfb]))))
    names = "erm,rep_only,gin_ipa,finetune_scratch,tent,sfb,alpha"
    words = ["search", str(path), "--methods", names, "--seeds", "[7]", "--defaults", "--root", str(root), "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    summary: dict[str, Any] = json.loads(captured.out)
    Draft202012Validator({**SCHEMA, "$ref": "#/$defs/search"}).validate(summary)

    found = {(row["method"], row["p"], row["seed"]) for row in summary["table"]}
    trained = {("erm", None), ("rep_only", None), ("dropgen", 0.0)}
    adapted = {("erm+tent", None), ("dropgen+tent", 0.0), ("erm+sfb", None), ("erm+alpha", None)}
    assert found == {(*line, 7) for line in trained | adapted}
    stages = list(summary["computed_seconds"])
    assert stages.index("search") < stages.index("evaluate") < stages.index("adapt")  # what they need is there
    for row in summary["table"]:
        tested = read_json(Path(row["evaluation"]) / "summary.json")
        assert (row["source_dice"], row["target_dice"]) == (tested["source_dice"], tested["target_dice"])
    ranks = [entry["rank"] for entry in summary["ranking"]]
    assert ranks == sorted(ranks)
    lost = {line["method"]: line for line in summary["absent"]}
    assert lost["gin_ipa"]["reason"] == "diverged at step 1"
    assert "anatomix's 4 downsamplings" in lost["finetune_scratch"]["reason"]

    page = (root / "tiny" / "results.md").read_text()
    report = (root / "tiny" / "report.html").read_text()
    for told in (page, report, captured.err):
        assert "diverged at step 1" in told
        assert "unavailable: crop axis x = 16 voxels does not fit" in told
        assert "Small budget: 6 steps for every training" in told
    assert "ERM + Alpha Tuning" in page
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["skipped"] == ["check", "precompute", "search", "evaluate", "adapt", "register", "replay", "report"]
    assert again["table"] == summary["table"]
