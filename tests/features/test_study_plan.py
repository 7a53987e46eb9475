"""`dropgen study plan`: from the training cases alone, from any kind of source, refused with numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from dropgen.__main__ import main
from dropgen.errors import StudyError
from dropgen.features.plan import make_plan
from dropgen.features.plan_page import notes, page, snippet
from dropgen.features.studies.fingerprint import take_fingerprint
from dropgen.features.studies.intensity import RULES
from dropgen.features.studies.rule_choice import choose_rule
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import write_mask, write_volume

if TYPE_CHECKING:
    from conftest import StudyFolder

AFFINE = np.diag([2.0, 1.0, 1.5, 1.0])


def write_case(tiny: StudyFolder, index: int, array: np.ndarray, mask: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    write_volume(tiny.image(index), array.astype(np.float32), affine)
    write_mask(tiny.label(index), mask, affine)


def test_a_fingerprint_is_taken_in_ras_axes_of_training_cases_alone(tiny: StudyFolder, tmp_path: Path) -> None:
    turned = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])  # file axes are y, z, x
    array = np.zeros((10, 8, 6))
    array[2:8, 1:5, 3:6] = 5
    write_case(tiny, 0, array, array > 0, turned)
    tiny.image(1).write_bytes(b"not a volume")
    found = take_fingerprint(load_study(tiny.write(), tmp_path))
    assert found.spacings.tolist() == [[3, 1, 2]]
    assert found.shapes.tolist() == [[6, 10, 8]]
    assert found.inner_shapes.tolist() == [[3, 6, 4]]
    (organ,) = found.classes.values()
    assert (organ.cases, organ.median) == (1, pytest.approx(6 * 4 * 3 * 6 / 1000))
    (values,) = found.intensities.values()
    assert (values.low, values.high, values.foreground) == (0, 5, (5, 5, 5))


def test_broken_training_cases_are_all_named(tiny: StudyFolder, tmp_path: Path) -> None:
    study = load_study(tiny.write(), tmp_path)
    tiny.image(0).write_bytes(b"not a volume")
    with pytest.raises(StudyError, match="1 of 1 training cases are broken:\ncase one: "):
        take_fingerprint(study)


def test_a_plan_is_a_study_that_loads(tiny: StudyFolder, tmp_path: Path) -> None:
    for index in range(3):
        write_case(tiny, index, np.random.default_rng(index).normal(size=(20, 24, 22)), np.ones((20, 24, 22)))
    source = tiny.write()
    plan = make_plan(source, tmp_path)
    assert plan.study.spacing == (2.0, 1.0, 1.5)
    assert plan.predictor.downs == 3
    written = yaml.safe_load(snippet(plan, source))
    source.write_text(yaml.safe_dump({"source": "manifest.csv"} | written))
    again = load_study(source, tmp_path)
    assert (again.spacing, again.crop, again.intensity) == (plan.study.spacing, plan.study.crop, plan.study.intensity)
    shown = page(plan, tmp_path)
    assert "the study has 1 x 1 x 1" in shown
    assert "not measured" in shown


def test_a_raw_folder_is_planned_without_a_study_file(tiny: StudyFolder, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    image = np.random.default_rng(0).normal(size=(8, 9, 10))
    write_volume(raw / "imagesTr" / "one_0000.nii.gz", image.astype(np.float32), AFFINE)
    write_mask(raw / "labelsTr" / "one.nii.gz", np.full(image.shape, 2), AFFINE)
    unnamed = make_plan(raw, tmp_path)
    assert unnamed.study.classes == ("background", "class 1", "class 2")
    described = {"labels": {"background": 0, "liver": 1, "tumour": 2}, "channel_names": {"0": "CT"}}
    (raw / "dataset.json").write_text(json.dumps(described))
    named = make_plan(raw, tmp_path)
    assert (named.study.classes, named.study.intensity) == (("background", "liver", "tumour"), "hu")
    written = yaml.safe_load(snippet(named, raw))
    (tmp_path / "planned.yaml").write_text(yaml.safe_dump(written))
    assert load_study(tmp_path / "planned.yaml", tmp_path).name == "raw"
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    with pytest.raises(StudyError, match=r"label value 2 is in 1 training cases and the classes are 0\.\.1"):
        make_plan(raw, tmp_path)


def test_a_made_up_spacing_and_padding_are_said(tiny: StudyFolder, tmp_path: Path) -> None:
    tiny.settings["placeholder_spacing"] = ["a"]
    plan = make_plan(tiny.write(), tmp_path)
    assert [note.partition(",")[0] for note in notes(plan)] == [
        "the spacing of a is a placeholder", "the crop is longer than the median case along x",
    ]  # fmt: skip


def run(tiny: StudyFolder, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    source = tiny.write()
    capsys.readouterr()
    code = main(["study", "plan", str(source), "--json", "--root", str(tiny.path / "none" / "root"), *words])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else None, said.err


def test_nothing_is_written(tiny: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write()
    before = {path: path.stat().st_mtime_ns for path in tiny.path.rglob("*") if path.name != "study.yaml"}
    code, document, _ = run(tiny, capsys)
    assert (code, document["train"], document["step_seconds"]) == (0, 1, None)
    tiny_after = {path: path.stat().st_mtime_ns for path in tiny.path.rglob("*") if path.name != "study.yaml"}
    manifest = tiny.path / "manifest.csv"  # the fixture writes it again
    assert {**tiny_after, manifest: 0} == {**before, manifest: 0}


def test_measured_steps_give_hours(tiny: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _, document, _ = run(tiny, capsys, "--measure")
    assert document["training_hours"] == pytest.approx(document["steps"] * document["step_seconds"] / 3600)


def test_what_does_not_fit_is_refused_with_numbers(
    tiny: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, said = run(tiny, capsys, "--memory-gb", "0.001")
    assert code == 2
    assert "and the budget is 1.0 MB; raise --memory-gb" in said
    monkeypatch.setattr("dropgen.memory.available", lambda: 1000)
    code, document, said = run(tiny, capsys)
    assert (code, document["memory_available_bytes"]) == (2, 1000)
    assert "of memory and 1.0 kB are available" in said
    monkeypatch.setattr("dropgen.features.store.folder.Folder.free", lambda place: 10)
    code, document, said = run(tiny, capsys)
    assert (code, document["store_free_bytes"]) == (2, 10)
    assert "has 10 bytes free; free disk space there" in said


@pytest.mark.parametrize("words", [("check", "--measure"), ("check", "--memory-gb", "4")])
def test_another_action_refuses_what_it_would_not_read(
    words: tuple[str, ...], tiny: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", words[0], str(tiny.write()), *words[1:]]) == 2
    assert "belong to study plan" in capsys.readouterr().err


def test_an_intensity_rule_has_a_reason(tiny: StudyFolder, tmp_path: Path) -> None:
    def rule(array: np.ndarray, modality: str = "unnamed") -> str:
        write_case(tiny, 0, array, np.ones(array.shape))
        (values,) = take_fingerprint(load_study(tiny.write(), tmp_path)).intensities.values()
        chosen, why = choose_rule(modality, values)
        assert chosen in RULES
        assert why
        return chosen

    even = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    outlier = even.copy()
    outlier[0, 0, 0] = 50
    assert [rule(even), rule(outlier), rule(even, "CT"), rule(even * 2000 - 1000)] == [
        "minmax", "percentile", "hu", "hu",
    ]  # fmt: skip
