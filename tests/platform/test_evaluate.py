from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import yaml

from dropgen.config import to_json
from dropgen.errors import CheckpointError, ResourceError
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.evaluate import command, evaluate_trial, held_out_cases
from dropgen.platform.evaluation.metrics import dice
from dropgen.platform.evaluation.touches import LOG, Touch, read_touches, touches_said
from dropgen.platform.segmenter import Segmenter


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "evaluation" / "cases.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_test_case_gets_a_mask_on_its_own_grid(evaluated: Any) -> None:
    folder = evaluated.bench.folder(evaluated.trials[1])
    test = evaluated.bench.study.split("test")
    assert {path.name for path in (folder / "evaluation" / "masks").iterdir()} == {f"{case.id}.nii.gz" for case in test}
    orientations = set()
    for case in test:
        image, mask = read_volume(case.image), read_mask(folder / "evaluation" / "masks" / f"{case.id}.nii.gz")
        assert mask.array.shape == image.array.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
        orientations.add(str(np.sign(image.affine[:3, :3].round(3))))
    assert len(orientations) > 1


def test_the_masks_and_scores_are_those_of_the_bundle(evaluated: Any) -> None:
    folder = evaluated.bench.folder(evaluated.trials[1])
    segmenter = Segmenter.load(folder / "bundle")
    scores = {(row["case"], row["class"]): row["dice"] for row in rows_of(folder)}
    classes = evaluated.bench.study.classes
    for case in evaluated.bench.study.split("test"):
        mask = segmenter.predict(read_volume(case.image), modality=case.modality)
        written = read_mask(folder / "evaluation" / "masks" / f"{case.id}.nii.gz").array
        np.testing.assert_array_equal(written, mask)
        for name, value in zip(classes[1:], dice(mask, read_mask(case.label).array, len(classes)), strict=True):
            assert float(scores[case.id, name] or "nan") == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_the_bundle_records_what_the_training_labels_hold(evaluated: Any) -> None:
    bench = evaluated.bench
    train = bench.study.split("train")
    spec = Segmenter.load(bench.folder(evaluated.trials[0]) / "bundle").spec
    for value, name in enumerate(bench.study.classes[1:], 1):
        record = spec.training[name]
        counts = [np.count_nonzero(bench.store.label(bench.index.keys[case.id].label) == value) for case in train]
        logs = np.log([count * np.prod(bench.study.spacing) / 1000 for count in counts if count])
        assert (record.cases, record.present) == (len(train), len(logs))
        assert record.log_ml == pytest.approx(logs.mean())
        assert record.log_sd == pytest.approx(logs.std(ddof=1))
        assert record.least_share is not None and 0 < record.least_share <= 1


def test_source_and_unseen_domains_are_told_apart(evaluated: Any) -> None:
    study, summary = evaluated.bench.study, evaluated.summaries[0]
    domains = {case.domain for case in study.split("test")}
    assert set(summary["domains"]) == domains
    assert set(summary["target_dice"]) == domains - study.train_domains
    (source,) = study.train_domains
    assert summary["source_dice"] == summary["domains"][source]["mean"]
    for domain, value in summary["target_dice"].items():
        assert value == summary["domains"][domain]["mean"]
        subjects = {case.subject for case in study.split("test") if case.domain == domain}
        assert summary["domains"][domain]["n"] == len(subjects)


def test_the_summary_is_the_mean_of_the_case_table(evaluated: Any) -> None:
    for trial, summary in zip(evaluated.trials, evaluated.summaries, strict=True):
        rows = rows_of(evaluated.bench.folder(trial))
        for domain, spread in summary["domains"].items():
            cases = {row["case"] for row in rows if row["domain"] == domain}
            means = [fmean(float(row["dice"]) for row in rows if row["case"] == case and row["dice"]) for case in cases]
            assert spread["mean"] == pytest.approx(fmean(means), abs=1e-6)  # one case per subject in this study


def test_nothing_in_the_summary_is_outside_json(evaluated: Any) -> None:
    text = (evaluated.bench.folder(evaluated.trials[0]) / "evaluation" / "summary.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_finished_evaluation_is_read_and_another_bundle_or_label_is_evaluated_anew(
    evaluated: Any, tmp_path: Path
) -> None:
    bench = replace(evaluated.bench, root=tmp_path)
    trial = evaluated.trials[0]
    folder = bench.folder(trial)
    shutil.copytree(evaluated.bench.folder(trial), folder)
    path, log = folder / "evaluation" / "summary.json", folder.parents[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_dice": 0.123}))
    calls: list[tuple[int, int]] = []
    assert evaluate_trial(bench, trial, lambda *now: calls.append(now))["source_dice"] == 0.123
    assert not calls
    assert read_touches(log) == []
    corrected = bench.study.split("test")[0].id
    keys = {**bench.index.keys, corrected: replace(bench.index.keys[corrected], label="0" * 16)}
    anew = replace(bench, index=replace(bench.index, keys=keys))
    assert evaluate_trial(anew, trial)["source_dice"] != 0.123
    (touch,) = read_touches(log)
    assert (touch.trial, touch.method, touch.seed, touch.adapt) == (bench.key(trial), "erm", 1, None)

    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_dice": 0.123}))
    assert evaluate_trial(anew, trial)["source_dice"] == 0.123
    spec = folder / "bundle" / "segmenter.json"
    record = json.loads(spec.read_text())
    record["spec"]["overlap"] = 0.25
    spec.write_text(json.dumps(record))
    assert evaluate_trial(anew, trial, lambda *now: calls.append(now))["source_dice"] != 0.123
    total = len(bench.study.split("test"))
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert len(read_touches(log)) == 2
    assert read_touches(log)[0] == touch


def test_another_tolerance_measures_the_masks_anew_and_trains_nothing(evaluated: Any, tmp_path: Path) -> None:
    bench, trial = replace(evaluated.bench, root=tmp_path), evaluated.trials[0]
    shutil.copytree(evaluated.bench.folder(trial), bench.folder(trial))
    evaluation = bench.experiment.evaluation.model_copy(update={"nsd_tolerance": 0.5})
    strict = replace(bench, experiment=bench.experiment.model_copy(update={"evaluation": evaluation}))
    assert strict.key(trial) == bench.key(trial)
    calls: list[int] = []
    anew = evaluate_trial(strict, trial, lambda done, total: calls.append(done))
    assert calls
    assert anew["measures"]["nsd_tolerance_mm"] == 0.5
    assert anew["domains"] == evaluated.summaries[0]["domains"]
    before = evaluated.summaries[0]["measures"]["domains"]
    for domain, found in anew["measures"]["domains"].items():
        assert found["nsd"]["mean"] <= before[domain]["nsd"]["mean"]
        assert found["dice"] == anew["domains"][domain]


def test_a_test_case_without_a_label_gets_a_mask_and_no_score(evaluated: Any, tmp_path: Path) -> None:
    first, *others = evaluated.bench.study.split("test")
    study = replace(
        evaluated.bench.study, cases=(*evaluated.bench.study.split("train"), replace(first, label=None), *others[:1])
    )
    index = evaluated.bench.index
    bench = replace(evaluated.bench, root=tmp_path, study=study, index=index)
    folder = bench.folder(evaluated.trials[0])
    shutil.copytree(evaluated.bench.folder(evaluated.trials[0]), folder, ignore=shutil.ignore_patterns("evaluation"))
    summary = evaluate_trial(bench, evaluated.trials[0])
    assert (summary["cases"], summary["scored"]) == (2, 1)
    assert (folder / "evaluation" / "masks" / f"{first.id}.nii.gz").exists()
    assert first.id not in {row["case"] for row in rows_of(folder)}


def test_an_untrained_trial_is_named_with_the_command(evaluated: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dropgen train .*--method 'dropgen p=0\.25' --seed 1"):
        evaluate_trial(replace(evaluated.bench, root=tmp_path), evaluated.trials[1])


def case(name: str, domain: str, split: str) -> Case:
    return Case(name, name, domain, None, split, (Path(name),), Path(name))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "test_domain", "expected"),
    [
        ("target_validation", "new", {"t", "v-source"}),
        ("source_validation", "new", {"t"}),
        ("all_validation", "new", {"t"}),
        ("target_validation", "source", {"t"}),
    ],
)
def test_only_cases_that_selected_nothing_are_held_out(rule: str, test_domain: str, expected: set[str]) -> None:
    cases = (case("a", "source", "train"), case("v-source", "source", "val"), case("v-new", "new", "val"))
    study = Study(
        "toy", ("background", "one"), (1, 1, 1), (16, 16, 16), "minmax", True, (*cases, case("t", test_domain, "test"))
    )
    assert {held.id for held in held_out_cases(study, rule)} == expected


def test_the_verb_prints_a_table_and_one_document(
    evaluated, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(evaluated.bench.experiment)))
    arguments = argparse.Namespace(
        experiment=path, root=evaluated.bench.root, overrides=(), method="erm", seed=None, adapt=None, json=False
    )
    document = command(arguments)
    (entry,) = document["evaluations"]
    assert entry["source_dice"] == evaluated.summaries[0]["source_dice"]
    printed = capsys.readouterr().out
    assert "unseen" in printed
    for spread in entry["domains"].values():
        assert f"{100 * spread['mean']:.1f}" in printed
        assert math.isfinite(spread["mean"])
    manifest = json.loads((evaluated.bench.root / "tiny" / "evaluate.manifest.json").read_text())
    assert manifest["exit"] == "finished"


def test_an_evaluation_that_dies_has_touched_the_test_cases_too(
    evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, trial = replace(evaluated.bench, root=tmp_path), evaluated.trials[0]
    shutil.copytree(evaluated.bench.folder(trial) / "bundle", bench.folder(trial) / "bundle")
    shutil.copy(evaluated.bench.folder(trial) / "result.json", bench.folder(trial))
    monkeypatch.setattr(Segmenter, "predict", lambda *_, **__: pytest.fail("dies"))
    with pytest.raises(pytest.fail.Exception):
        evaluate_trial(bench, trial)
    assert len(read_touches(tmp_path / "tiny")) == 1


def test_a_log_that_cannot_be_written_stops_the_test_before_a_prediction(
    evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, trial = replace(evaluated.bench, root=tmp_path), evaluated.trials[0]
    shutil.copytree(evaluated.bench.folder(trial), bench.folder(trial), ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "tiny" / LOG).mkdir()
    monkeypatch.setattr(Segmenter, "predict", lambda *_, **__: pytest.fail("predicted unseen"))
    with pytest.raises(ResourceError, match="no test case is predicted without a line there"):
        evaluate_trial(bench, trial)


def touch(trial: str, adapt: str | None = None) -> Touch:
    return Touch("2026-01-01T00:00:00+00:00", "run", trial, "erm", 1, adapt, "chosen", "0" * 16)


def test_what_is_said_of_touches_counts_models_and_names_rows_from_before_the_log(tmp_path: Path) -> None:
    rows = [
        {"trial": "a", "evaluation": "/t/a/evaluation"},
        {"trial": "a", "evaluation": "/t/a/evaluation-tent steps=5"},
        {"trial": "b", "evaluation": "/t/b/evaluation"},
    ]
    for one in (touch("a"), touch("a", "tent steps=5"), touch("a", "tent steps=5")):
        one.log(tmp_path)
    with (tmp_path / LOG).open("a") as file:
        file.write("half a li")
    said = touches_said(read_touches(tmp_path), rows)
    assert said == (
        "The test cases were predicted 3 times, at most 2 times by one of 2 models (test-touches.jsonl). "
        "1 of the tested rows are from before every look at the test cases was logged."
    )
    touch("b").log(tmp_path)
    assert [one.trial for one in read_touches(tmp_path)] == ["a", "a", "a", "b"]
    assert touches_said([], []) == ""
