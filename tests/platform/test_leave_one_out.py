"""Leave-one-domain-out: what a fold may see, that the mean over folds chooses, and that the final training sees all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dropgen.config import LEAVE_ONE_OUT, Experiment, Selection, Trial
from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.study import Study
from dropgen.features.studies.validation import folds
from dropgen.manifest import write_json
from dropgen.platform.evaluate import held_out_cases
from dropgen.platform.external import split
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Progress, Workbench, train_trial, trials_of
from dropgen.platform.training.bench import require_trainable
from dropgen.platform.training.folds import mean_curve
from tests_support.tiny import tiny_bench, tiny_experiment


def two_domains(study: Study) -> Study:
    """The same cases, every second training case from another site."""
    train = study.split("train")
    sites = {case.id: ("one", "other")[place % 2] for place, case in enumerate(train)}
    cases = tuple(dataclasses.replace(case, domain=sites.get(case.id, case.domain)) for case in study.cases)
    return dataclasses.replace(study, cases=cases)


def under(experiment: Experiment, rule: str) -> Experiment:
    return experiment.model_copy(update={"selection": Selection.model_validate({"rule": rule})})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    training = {"steps": 40, "validate_every": 10, "checkpoint_every": 10}
    plain = tiny_bench(tmp_path_factory.mktemp("folds"), methods=[{"name": "erm"}], training=training)
    return dataclasses.replace(
        plain, experiment=under(plain.experiment, LEAVE_ONE_OUT), study=two_domains(plain.study)
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(bench: Workbench) -> tuple[Trial, dict[str, Any], list[Progress]]:
    (trial,) = trials_of(bench.experiment)
    seen: list[Progress] = []
    return trial, train_trial(bench, trial, seen.append), seen


def with_rule(bench: Workbench, rule: str, study: Study, root: Path) -> Workbench:
    experiment = under(bench.experiment, rule)
    return dataclasses.replace(bench, experiment=experiment, study=study, root=root)


def test_a_fold_is_judged_by_its_domain_alone_and_trained_on_all_others(bench: Workbench) -> None:
    study = bench.study
    found = folds(study)
    assert set(found) == study.train_domains == {"one", "other"}
    for domain, fold in found.items():
        assert {case.domain for case in fold.split("val")} == {domain}
        assert fold.train_domains == study.train_domains - {domain}
        assert not {case.subject for case in fold.split("train")} & {case.subject for case in fold.split("val")}
        assert fold.split("test") == ()
    every = [case.id for fold in found.values() for case in fold.split("val")]
    assert sorted(every) == sorted(case.id for case in study.split("train"))
    assert {case.id for case in held_out_cases(study, LEAVE_ONE_OUT)}.isdisjoint(every)


def test_a_person_of_two_domains_is_not_judged_by_a_network_that_knows_them(bench: Workbench) -> None:
    one, other, *rest = bench.study.split("train")
    twins = (dataclasses.replace(one, subject="twin"), dataclasses.replace(other, subject="twin"), *rest)
    stranger = dataclasses.replace(other, id="stranger", subject="stranger")
    found = folds(dataclasses.replace(bench.study, cases=(*twins, stranger)))
    assert [case.id for case in found["one"].split("val")] == [case.id for case in rest]
    assert [case.id for case in found["other"].split("val")] == ["stranger"]
    with pytest.raises(StudyError, match="everybody in domain other is in another training domain too"):
        folds(dataclasses.replace(bench.study, cases=twins))


def test_one_training_domain_is_refused_in_a_sentence(bench: Workbench) -> None:
    alone = dataclasses.replace(
        bench.study, cases=tuple(dataclasses.replace(case, domain="one") for case in bench.study.cases)
    )
    with pytest.raises(
        StudyError, match=r"trains on one domain alone, one, and selection\.rule = leave_one_domain_out"
    ):
        require_trainable(bench.experiment, alone)


def test_the_mean_over_left_out_domains_scores_the_trial_and_names_its_checkpoint(
    trained: tuple[Trial, dict[str, Any], list[Progress]],
) -> None:
    _, result, _ = trained
    curves = [[(step, dice) for step, dice in curve] for curve in result["curve"]["left_out"].values()]
    assert len(curves) == 2
    assert [tuple(entry) for entry in result["curve"]["validation"]] == mean_curve(curves)
    assert result["val_dice"] == max(dice for _, dice in mean_curve(curves))
    assert (result["best_step"], result["val_dice"]) in mean_curve(curves)


def test_the_final_training_keeps_the_network_of_the_step_that_left_out_domains_name(
    bench: Workbench, tmp_path: Path
) -> None:
    (trial,) = trials_of(bench.experiment)
    fresh = dataclasses.replace(bench, root=tmp_path)
    told = {"one": (0.2, 0.6, 0.4, 0.5), "other": (0.1, 0.5, 0.6, 0.2)}  # on record, so no fold is trained
    for number, (domain, dice) in enumerate(told.items()):
        curve = [[10 * place, value] for place, value in enumerate(dice, 1)]
        write_json(fresh.folder(trial) / "folds" / f"{number}.json", {"domain": domain, "curve": curve})
    result = train_trial(fresh, trial)
    assert (result["best_step"], result["val_dice"]) == (20, pytest.approx(0.55))
    kept = Segmenter.load(Path(result["bundle"])).network.state_dict()
    last = torch.load(fresh.folder(trial) / "last.ckpt", weights_only=False)["network"]
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_a_left_out_domain_judges_what_a_study_without_it_would_train(
    bench: Workbench, trained: tuple[Trial, dict[str, Any], list[Progress]], tmp_path: Path
) -> None:
    trial, result, _ = trained
    for domain, study in folds(bench.study).items():
        alone = with_rule(bench, "target_validation", study, tmp_path / domain)
        assert train_trial(alone, trial)["curve"]["validation"] == result["curve"]["left_out"][domain]


def test_the_final_network_is_that_of_a_training_on_all_domains(
    bench: Workbench, trained: tuple[Trial, dict[str, Any], list[Progress]], tmp_path: Path
) -> None:
    trial, _, _ = trained
    plain = with_rule(bench, "target_validation", bench.study, tmp_path)
    train_trial(plain, trial)
    one, other = (
        torch.load(place.folder(trial) / "last.ckpt", weights_only=False)["network"] for place in (bench, plain)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_progress_is_that_of_one_trial_and_finished_folds_are_not_trained_again(
    bench: Workbench, trained: tuple[Trial, dict[str, Any], list[Progress]]
) -> None:
    trial, result, seen = trained
    steps = [progress.step for progress in seen]
    assert steps == sorted(steps)
    assert steps[-1] == result["steps"]
    assert all(step < result["steps"] for step in steps[:-1])
    folder = bench.folder(trial)
    records = sorted((folder / "folds").iterdir())
    assert [record.name for record in records] == ["0.json", "1.json"]  # and no network of a fold
    before = [record.stat().st_mtime_ns for record in records]
    (folder / "result.json").unlink()
    (folder / "last.ckpt").unlink()
    again = train_trial(bench, trial)
    assert again["curve"]["left_out"] == result["curve"]["left_out"]
    assert again["curve"]["validation"] == result["curve"]["validation"]
    assert [record.stat().st_mtime_ns for record in records] == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": {"scheduler": "asha"}}, "no scheduler can stop one of them"),
        ({"adaptations": [{"name": "tent"}]}, "tent has no case to be tuned on"),
        ({"methods": [{"name": "dropgen_any_p"}]}, "dropgen_any_p has no case to choose p on"),
    ],
)
def test_what_would_be_chosen_on_cases_that_are_trained_on_is_refused(
    bench: Workbench, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    experiment = tiny_experiment(
        tmp_path, **{"methods": [{"name": "erm"}], **changes, "selection": {"rule": LEAVE_ONE_OUT}}
    )
    with pytest.raises(ConfigError, match=said):
        require_trainable(experiment, bench.study)


def test_another_programs_trials_are_refused(tmp_path: Path) -> None:
    methods = [{"name": "erm"}, {"name": "nnunet", "epochs": 1}]
    with pytest.raises(ConfigError, match="nnunet trains once"):
        split(tiny_experiment(tmp_path, methods=methods, selection={"rule": LEAVE_ONE_OUT}))
