"""`--dry-run`: what is left is counted rightly, refused where the disk is too small, and nothing is touched."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dropgen.__main__ import main
from dropgen.config import Experiment, to_json
from dropgen.features.studies.study import load_study
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluate import held_out_cases
from dropgen.platform.train import Progress, Workbench, train_trial, trials_of
from tests_support.tiny import tiny_experiment

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "dropgen" / "schema.json").read_text())
TWO: dict[str, Any] = {"methods": [{"name": "erm"}, {"name": "dropgen", "p": [0, 0.5]}], "seeds": [1, 2]}
Usage = namedtuple("Usage", "total used free")

DryRun = Callable[..., tuple[int, Any, str]]


def everything(folder: Path) -> dict[Path, tuple[int, bytes | None]]:
    """Every file and folder below one, with time of change and content."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in (folder, *folder.rglob("*"))
        if path.exists()
    }


@pytest.fixture
def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> DryRun:
    """Runs a verb with --dry-run; holds its document against the schema and the root against what it was."""

    def verb(name: str, experiment: Experiment, root: Path, *words: str) -> tuple[int, Any, str]:
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(to_json(experiment)))
        before = everything(root)
        capsys.readouterr()
        code = main([name, str(path), "--dry-run", "--json", "--root", str(root), *words])
        said = capsys.readouterr()
        assert everything(root) == before
        document = json.loads(said.out) if said.out else None
        if document is not None:
            Draft202012Validator({**SCHEMA, "$ref": "#/$defs/dry_run"}).validate(document)
            Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(document)
        return code, document, said.err

    return verb


def by_name(document: Any) -> dict[str, Any]:
    return {work["name"]: work for work in document["methods"]}


def test_a_root_that_does_not_exist_is_not_made_and_everything_is_left(tmp_path: Path, dry_run: DryRun) -> None:
    experiment, root = tiny_experiment(tmp_path, **TWO), tmp_path / "none" / "root"
    code, document, said = dry_run("run", experiment, root)
    assert code == 0
    works = by_name(document)
    assert (works["erm"]["sets"], works["erm"]["seeds"], works["erm"]["trials"]) == (1, 2, 2)
    assert (works["dropgen"]["sets"], works["dropgen"]["trials"], works["dropgen"]["steps"]) == (2, 4, 24)
    assert document["steps"] == 6 * 6
    study = load_study(experiment.study, tmp_path)
    validating = len(validation_cases(study, experiment.selection.rule))
    assert document["validations"] == 6 * 2 * validating  # trials, times
    assert document["evaluations"] == 6 * len(held_out_cases(study, experiment.selection.rule))
    assert document["store_cases"] == len(study.cases)
    assert document["disk_bytes"]["store"] > 0
    assert document["hours"] is None
    assert "not measured" in said
    assert not (tmp_path / "none").exists()


def test_what_is_done_is_no_work(root: Path, dry_run: DryRun) -> None:
    experiment = tiny_experiment(root, **TWO)
    bench = Workbench.open(experiment, root)
    first, second, *_ = trials_of(experiment)
    train_trial(bench, first)

    def killed(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(bench, second, killed)
    _, document, _ = dry_run("run", experiment, root)
    erm = by_name(document)["erm"]
    assert (erm["trials"], erm["done"], erm["begun"], erm["steps"], erm["tests"]) == (2, 1, 1, 3, 2)
    assert (document["store_cases"], document["disk_bytes"]["store"]) == (0, 0)


def test_a_search_tests_nothing(root: Path, dry_run: DryRun) -> None:
    _, document, _ = dry_run("search", tiny_experiment(root, **TWO), root)
    assert (document["evaluations"], document["disk_bytes"]["masks"]) == (0, 0)
    assert document["steps"] == 36


def test_a_sampled_space_is_counted_by_its_points(root: Path, dry_run: DryRun) -> None:
    methods = [{"name": "dropgen", "p": {"low": 0, "high": 0.9}}, {"name": "erm"}]
    search = {"sampler": "tpe", "trials": 3}
    _, document, _ = dry_run("run", tiny_experiment(root, methods=methods, search=search, seeds=[1, 2]), root)
    works = by_name(document)
    assert (works["dropgen"]["sets"], works["dropgen"]["trials"]) == (3, 4)  # and the best point with the other seed
    assert works["erm"]["trials"] == 2


def test_test_time_methods_count_their_tuning(root: Path, dry_run: DryRun) -> None:
    adaptations = [{"name": "tent"}]
    _, document, _ = dry_run("run", tiny_experiment(root, **TWO, adaptations=adaptations), root)
    (tent,) = document["adaptations"]
    held_out = document["evaluations"] // 6
    assert tent["models"] == 4  # of ERM, and of DropGen that drops nothing
    assert tent["predictions"] >= 4 * (held_out + 2)


def test_another_program_is_counted_and_refused_where_it_is_missing(
    root: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropgen.platform.external.nnunet.program", lambda name: None)
    experiment = tiny_experiment(root, methods=[{"name": "erm"}, {"name": "nnunet", "epochs": 1}])
    code, document, said = dry_run("run", experiment, root)
    assert (code, document["externals"][0]["trials"]) == (2, 1)
    assert "method nnunet cannot run" in said


@pytest.mark.usefixtures("standin")
def test_the_cost_of_another_program_is_said_to_be_unknown(root: Path, dry_run: DryRun) -> None:
    experiment = tiny_experiment(root, methods=[{"name": "erm"}, {"name": "nnunet", "epochs": 1}])
    code, document, said = dry_run("run", experiment, root)
    assert (code, document["externals"][0]["done"], document["externals"][0]["unavailable"]) == (0, 0, None)
    assert "1 trial of another program, at a cost unknown here" in said
    commands = document["externals"][0]["commands"]
    names = ("extract_fingerprint", "plan_experiment", "preprocess", "train", "predict")
    assert [next(name for name in names if f"nnUNetv2_{name} " in line) for line in commands] == list(names)
    assert "-chk checkpoint_best.pth --disable_tta" in commands[-1]
    assert all(line in said for line in commands)


def test_what_cannot_take_part_in_a_comparison_is_a_line(root: Path, dry_run: DryRun) -> None:
    code, document, said = dry_run("search", tiny_experiment(root), root, "--methods", "erm,mixup", "--defaults")
    assert (code, sorted(by_name(document))) == (0, ["erm", "mixup"])
    assert document["evaluations"] > 0
    code, document, said = dry_run(
        "search", tiny_experiment(root), root, "--methods", "erm,dropgen+mixup", "--defaults"
    )
    assert [row["method"] for row in document["unavailable"]] == ["dropgen+mixup"]
    assert "dropgen+mixup: unavailable: " in said


def test_a_few_measured_steps_give_hours(root: Path, dry_run: DryRun) -> None:
    experiment = tiny_experiment(root, methods=[{"name": "erm"}, {"name": "dropgen", "p": 0.5}])
    code, document, said = dry_run("run", experiment, root, "--measure")
    assert code == 0
    seconds = sum(work["steps"] * work["step_seconds"] for work in document["methods"])
    assert document["hours"]["training"] == pytest.approx(seconds / 3600)
    assert 0 < document["least_hours"] <= sum(document["hours"].values())
    assert "hours: in all" in said


def test_a_disk_that_is_too_small_is_refused_with_numbers(
    tmp_path: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(tmp_path, **TWO)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    code, document, said = dry_run("run", experiment, tmp_path / "root")
    assert (code, document["root_free_bytes"]) == (2, 1000)
    assert "has 1.0 kB free; free disk space there" in said


def test_an_unsettled_source_of_features_is_said(root: Path, dry_run: DryRun) -> None:
    experiment = tiny_experiment(root, features={"source": "auto"})
    _, document, said = dry_run("run", experiment, root)
    assert document["notes"] == [
        "features.source = auto has not been settled; steps are counted as if features were online"
    ]
    assert document["notes"][0] in said


def test_the_demo_study_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--methods", "all")):
        assert main(["search", *words, "--dry-run", "--root", str(tmp_path)]) == 2
        assert "a dry run writes nothing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run", "search"])
def test_measuring_belongs_to_a_dry_run(
    verb: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(tiny_experiment(root))))
    assert main([verb, str(path), "--measure", "--root", str(root)]) == 2
    assert "--measure belongs to --dry-run" in capsys.readouterr().err
