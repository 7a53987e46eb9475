from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropgen.config import Component, Experiment, Trial, validate
from dropgen.errors import ConfigError, ExternalError
from dropgen.features.studies.validation import validation_cases
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform import external
from dropgen.platform.evaluation.metrics import dice, mean_dice
from dropgen.platform.evaluation.touches import read_touches
from dropgen.platform.external import nnunet
from dropgen.platform.external.commands import NnUNet, Site, prediction_step, preparation_steps, training_step
from dropgen.platform.train import Workbench
from tests_support.standin import StandIn
from tests_support.tiny import tiny_bench

TRIAL = Trial(method=Component.of("nnunet", epochs=1), seed=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return tiny_bench(tmp_path_factory.mktemp("nnunet"), methods=[{"name": "erm"}])


@pytest.fixture
def here(bench: Workbench, tmp_path: Path) -> Workbench:
    """The same store with results of its own."""
    return replace(bench, root=tmp_path)


def ids(cases: Any) -> list[str]:
    return sorted(case.id for case in cases)


def site(folder: Path, device: str = "cpu") -> Site:
    return Site(folder / "data", folder / "trial", device, workers=3)


def test_fingerprint_and_plan_see_training_cases_alone_and_nothing_sees_a_test_case(
    here: Workbench, standin: StandIn
) -> None:
    nnunet.run(here, TRIAL)
    train = ids(here.study.split("train"))
    val = ids(validation_cases(here.study, here.experiment.selection.rule))
    sees = {call["program"].removeprefix("nnUNetv2_"): call["sees"] for call in standin.calls()}
    assert list(sees) == ["extract_fingerprint", "plan_experiment", "preprocess", "train", "predict"]
    assert sees["extract_fingerprint"] == sees["plan_experiment"] == train
    assert sees["preprocess"] == sees["train"] == sorted(train + val)
    for call in standin.calls():
        (fold,) = call["split"]
        assert (sorted(fold["train"]), sorted(fold["val"])) == (train, val)
    labels = {path.name.removesuffix(".nii.gz") for path in here.root.rglob("labelsTr/*")}
    assert labels == {*train, *val}


@pytest.mark.parametrize("rule", ["target_validation", "source_validation"])
def test_only_the_validation_cases_of_the_selection_rule_choose_the_checkpoint(
    here: Workbench, standin: StandIn, rule: str
) -> None:
    domain = here.study.split("train")[0].domain
    first, *_ = here.study.split("val")
    cases = tuple(replace(case, domain=domain) if case == first else case for case in here.study.cases)
    selection = here.experiment.selection.model_copy(update={"rule": rule})
    mixed = replace(
        here,
        study=replace(here.study, cases=cases),
        experiment=here.experiment.model_copy(update={"selection": selection}),
    )
    nnunet.run(mixed, TRIAL)
    (fold,) = standin.calls()[-1]["split"]
    assert sorted(fold["val"]) == ids(validation_cases(mixed.study, rule))


def test_the_masks_are_scored_by_our_metrics_on_native_grids(here: Workbench, standin: StandIn) -> None:
    result = nnunet.run(here, TRIAL)
    assert nnunet.run(here, TRIAL) == result
    (touch,) = read_touches(here.root / here.experiment.name)
    assert (touch.method, touch.trial) == (TRIAL.method.label, result["key"])
    classes = len(here.study.classes)
    summary = result["evaluation"]
    folder = Path(result["folder"])
    assert summary == json.loads((folder / "evaluation" / "summary.json").read_text())
    assert summary["scored"] == len(here.study.split("test"))
    scores = {}
    for case in here.study.split("test"):
        image, mask = read_volume(case.image), read_mask(folder / "evaluation" / "masks" / f"{case.id}.nii.gz")
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
        np.testing.assert_array_equal(mask.array, image.array > 0.6 * image.array.max())
        assert case.label is not None
        scores[case.domain] = dice(mask.array, read_mask(case.label).array, classes)
    for domain, values in scores.items():  # one subject per domain in this study
        assert summary["domains"][domain]["mean"] == pytest.approx(np.nanmean(values))
    val = []
    for case in validation_cases(here.study, here.experiment.selection.rule):
        assert case.label is not None
        image = read_volume(case.image).array
        val.append((case, dice((image > 0.6 * image.max()).astype(int), read_mask(case.label).array, classes)))
    assert result["val_dice"] == pytest.approx(mean_dice(val))


def test_the_result_has_what_a_trial_of_our_own_has(here: Workbench, standin: StandIn, evaluated: Any) -> None:
    result = nnunet.run(here, TRIAL)
    assert set(evaluated.results[0]) - set(result) == set()
    assert set(evaluated.summaries[0]) - set(result["evaluation"]) == set()
    assert (result["steps"], result["best_step"]) == (250, 250)
    assert result["curve"] == {"loss": [[250, -0.25]], "validation": [[250, 0.375]]}
    assert result["bundle"] is None
    assert result["train_seconds"] == 2.5


def test_what_is_done_is_not_done_again(here: Workbench, standin: StandIn) -> None:
    first = nnunet.run(here, TRIAL)
    assert nnunet.run(here, TRIAL) == first
    assert len(standin.calls()) == 5
    nnunet.run(here, Trial(method=TRIAL.method, seed=2))  # the data are shared, the training is not
    assert [call["program"] for call in standin.calls()[5:]] == ["nnUNetv2_train", "nnUNetv2_predict"]


def test_a_corrected_test_label_is_scored_anew_without_training(here: Workbench, standin: StandIn) -> None:
    nnunet.run(here, TRIAL)
    case = here.study.split("test")[0]
    keys = {**here.index.keys, case.id: replace(here.index.keys[case.id], label="0" * 16)}
    nnunet.run(replace(here, index=replace(here.index, keys=keys)), TRIAL)
    assert [call["program"] for call in standin.calls()[5:]] == ["nnUNetv2_predict"]


def test_an_interrupted_training_continues_from_its_checkpoint(here: Workbench, standin: StandIn) -> None:
    (standin.folder / "break-nnUNetv2_train").touch()
    with pytest.raises(ExternalError, match=r"nnUNetv2_train ended with exit code 1; see why in .*train\.log"):
        nnunet.run(here, TRIAL)
    (standin.folder / "break-nnUNetv2_train").unlink()
    nnunet.run(here, TRIAL)
    first, second = (call for call in standin.calls() if call["program"] == "nnUNetv2_train")
    assert "--c" not in first["arguments"]
    assert second["arguments"] == [*first["arguments"], "--c"]


def test_progress_names_every_step(here: Workbench, standin: StandIn) -> None:
    told: list[tuple[str, int]] = []
    nnunet.run(here, TRIAL, lambda doing, step: told.append((doing, step)))
    assert list(dict.fromkeys(doing.partition(",")[0] for doing, _ in told)) == [
        "fingerprint", "plan", "preprocess", "train", "predict", "score"
    ]  # fmt: skip
    assert ("train, pseudo Dice 0.375", 250) in told


def test_the_commands_are_nnunets_own_with_one_fold_the_best_checkpoint_and_no_mirroring(tmp_path: Path) -> None:
    place, method = site(tmp_path), NnUNet(epochs=5)
    steps = {step.name: step for step in preparation_steps(place)}
    steps["train"] = training_step(place, method)
    steps["predict"] = prediction_step(place, method, tmp_path / "in", tmp_path / "out", "predict")
    lines = {name: [Path(step.command[0]).name, *step.command[1:]] for name, step in steps.items()}
    assert lines["fingerprint"] == ["nnUNetv2_extract_fingerprint", "-d", "1", "-np", "3"]
    assert lines["plan"] == ["nnUNetv2_plan_experiment", "-d", "1"]
    assert lines["preprocess"] == ["nnUNetv2_preprocess", "-d", "1", "-c", "3d_fullres", "-np", "3"]
    assert lines["train"] == [
        "nnUNetv2_train", "1", "3d_fullres", "0", "-tr", "nnUNetTrainer_5epochs", "-device", "cpu"
    ]  # fmt: skip
    assert lines["predict"] == [
        "nnUNetv2_predict", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-d", "1", "-c", "3d_fullres",
        "-f", "0", "-tr", "nnUNetTrainer_5epochs", "-chk", "checkpoint_best.pth", "--disable_tta",
        "-npp", "3", "-nps", "3", "-device", "cpu",
    ]  # fmt: skip


def test_every_folder_of_nnunet_lies_under_the_root(tmp_path: Path) -> None:
    for step in (*preparation_steps(site(tmp_path)), training_step(site(tmp_path), NnUNet())):
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            assert Path(step.environment[name]).is_relative_to(tmp_path)


def test_augmentation_takes_the_experiments_processes_on_a_cpu_and_nnunets_own_number_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    assert training_step(site(tmp_path), NnUNet()).environment["nnUNet_n_proc_DA"] == "3"
    assert "nnUNet_n_proc_DA" not in training_step(site(tmp_path, "cuda"), NnUNet()).environment
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    assert training_step(site(tmp_path), NnUNet()).environment["nnUNet_n_proc_DA"] == "7"


@pytest.mark.parametrize(("epochs", "trainer"), [(1, "nnUNetTrainer_1epoch"), (1000, "nnUNetTrainer")])
def test_a_number_of_epochs_is_a_trainer_of_nnunet(epochs: int, trainer: str) -> None:
    assert NnUNet(epochs).trainer == trainer


@pytest.mark.parametrize("epochs", [0, 3, 1.0, True, "5", None])
def test_other_numbers_of_epochs_are_refused_with_the_legal_ones(epochs: object) -> None:
    with pytest.raises(ConfigError, match=r"nnunet: epochs = .* must be one of 1, 5, 10"):
        nnunet.build(Component.of("nnunet", epochs=epochs))


def test_an_unknown_option_is_named_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match="unknown option 'epoch' of method 'nnunet'; did you mean 'epochs'"):
        nnunet.build(Component.of("nnunet", epoch=5))


def test_without_the_extra_it_says_what_to_install(here: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropgen.platform.external.nnunet.program", lambda command: None)
    reason = "the extra dropgen[nnunet] is not installed: pip install 'dropgen[nnunet]'"
    assert nnunet.available() == reason
    with pytest.raises(ConfigError) as caught:
        nnunet.run(here, TRIAL)
    assert str(caught.value) == f"method nnunet cannot run: {reason}"
    with pytest.raises(ConfigError, match="method nnunet cannot run: the extra"):
        external.require_available((TRIAL,))


def experiment(*methods: dict[str, Any]) -> Experiment:
    values = {"name": "x", "study": "study.yaml", "methods": methods, "seeds": [1, 2]}
    return validate(Experiment, values | {"selection": {"rule": "target_validation"}}, "x")


def test_an_experiment_is_parted_into_our_methods_and_the_trials_of_others() -> None:
    ours, others = external.split(experiment({"name": "erm"}, {"name": "nnunet", "epochs": [1, 5]}))
    assert [method.name for method in ours.methods] == ["erm"]
    assert [(trial.method.options["epochs"], trial.seed) for trial in others] == [(1, 1), (1, 2), (5, 1), (5, 2)]


def test_an_experiment_without_others_stays_as_it_is() -> None:
    plain = experiment({"name": "erm"})
    assert external.split(plain) == (plain, ())


def test_an_experiment_of_others_alone_and_a_wrong_option_are_refused() -> None:
    with pytest.raises(ConfigError, match="experiment 'x' has only nnunet; add a method to compare it with"):
        external.split(experiment({"name": "nnunet"}))
    with pytest.raises(ConfigError, match="epochs = 2 must be one of"):
        external.split(experiment({"name": "erm"}, {"name": "nnunet", "epochs": 2}))


def test_a_verb_that_does_not_run_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ours = external.trained_here(experiment({"name": "erm"}, {"name": "nnunet"}))
    assert [method.name for method in ours.methods] == ["erm"]
    assert "nnunet is left out here; its own program trains and tests it in `dropgen run`" in capsys.readouterr().err


def test_importing_dropgen_imports_no_nnunet() -> None:
    code = (
        "import sys, dropgen, dropgen.platform.external, dropgen.tuning.run, dropgen.serving.batch\n"
        "print([name for name in sys.modules if name.startswith('nnunetv2')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.skipif(nnunet.available() is not None, reason=str(nnunet.available()))
def test_the_real_nnunet_plans_on_training_cases_trains_predicts_and_is_scored(here: Workbench) -> None:
    result = nnunet.run(here, TRIAL)
    train = here.study.split("train")
    (fingerprint,) = here.root.rglob("preprocessed/*/dataset_fingerprint.json")
    assert len(json.loads(fingerprint.read_text())["spacings"]) == len(train)
    assert result["best_step"] == 250
    assert np.isfinite(result["curve"]["loss"]).all()
    assert 0 <= result["val_dice"] <= 1
    assert result["evaluation"]["scored"] == len(here.study.split("test"))
    assert nnunet.run(here, TRIAL) == result
