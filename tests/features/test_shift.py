"""A shifted study: the same people and labels under other intensities, the same for everybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.errors import StudyError
from dropgen.features.studies.check import check_study
from dropgen.features.studies.codes import Code
from dropgen.features.studies.shift import SHIFTS, choose_shifts, shift_study
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_volume, write_mask, write_volume

CODE = Code(scheme="SCT", value="1234", meaning="One", abnormal=True)


def make_study(folder: Path, split: str = "val", held_out: int = 4) -> Study:
    generator = np.random.default_rng(0)
    lines = ["image,label,split"]
    for number in range(held_out + 2):
        name = f"case{number}"
        write_volume(folder / f"{name}.nii.gz", generator.uniform(-500, 2000, (8, 9, 10)).astype(np.float32), np.eye(4))
        write_mask(folder / f"{name}-label.nii.gz", generator.integers(0, 2, (8, 9, 10)), np.eye(4))
        lines.append(f"{name}.nii.gz,{name}-label.nii.gz,{'train' if number < 2 else split}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    description = {"name": "toy", "source": "manifest.csv", "classes": ["background", "one"], "spacing": [1.0] * 3,
                   "crop": [8, 8, 8], "intensity": "minmax"}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(description))
    return load_study(folder / "study.yaml", folder)


def test_every_held_out_case_comes_back_under_every_shift_and_the_study_is_sound(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    shifted = load_study(shift_study(study, tmp_path / "out", tuple(SHIFTS)), tmp_path)
    assert check_study(shifted) == []
    assert shifted.split("train") == study.split("train")
    held_out = [case for case in shifted.cases if case.split != "train"]
    assert {case.domain for case in held_out} == {study.cases[0].domain, *SHIFTS}
    assert len(held_out) == 4 * (1 + len(SHIFTS))
    labels = {case.subject: case.label for case in study.cases}
    assert all(case.label == labels[case.subject] for case in held_out)


def test_what_is_known_of_spacing_vessels_and_codes_holds_for_the_copies_too(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    home = study.cases[0].domain
    told = replace(study, placeholder_spacing=(home,), tubular=("one",), codes={"one": CODE})
    shifted = load_study(shift_study(told, tmp_path / "told", ("gamma", "noisy")), tmp_path)
    assert (set(shifted.placeholder_spacing), shifted.tubular) == ({home, "gamma", "noisy"}, ("one",))
    assert shifted.codes == {"one": CODE}
    untold = load_study(shift_study(study, tmp_path / "untold", ("gamma",)), tmp_path)
    assert (untold.placeholder_spacing, untold.tubular) == ((), ())


def test_half_of_the_validation_subjects_are_held_out_for_testing_where_nobody_is(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    shifted = load_study(shift_study(study, tmp_path / "out", ("gamma",)), tmp_path)
    subjects = {split: {case.subject for case in shifted.split(split)} for split in ("val", "test")}
    assert len(subjects["val"]) == len(subjects["test"]) == 2
    assert not subjects["val"] & subjects["test"]


def test_a_test_split_stays_as_it_is(tmp_path: Path) -> None:
    study = make_study(tmp_path, split="test")
    shifted = load_study(shift_study(study, tmp_path / "out", ("gamma",)), tmp_path)
    assert {case.subject for case in shifted.split("test")} == {case.subject for case in study.split("test")}
    assert not shifted.split("val")


def test_copies_keep_grid_and_range_and_are_the_same_for_everybody(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    one, two = (load_study(shift_study(study, tmp_path / name, tuple(SHIFTS)), tmp_path) for name in ("one", "two"))
    originals = {case.subject: read_volume(case.image) for case in study.cases}
    for first, second in zip(one.cases, two.cases, strict=True):
        if first.domain not in SHIFTS:
            continue
        copy, original = read_volume(first.image), originals[first.subject]
        assert np.array_equal(copy.array, read_volume(second.image).array)
        assert np.array_equal(copy.affine, original.affine)
        low, high = original.array.min(), original.array.max()
        assert copy.array.min() >= low - 1e-3
        assert copy.array.max() <= high + 1e-3
        assert not np.allclose(copy.array, original.array, atol=0.01 * (high - low))


def test_a_copy_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    shift_study(study, tmp_path / "out", ("inverted",))
    image = next((tmp_path / "out" / "images").iterdir())
    before = image.stat().st_mtime_ns
    shift_study(study, tmp_path / "out", ("inverted", "gamma"))
    assert image.stat().st_mtime_ns == before


def test_every_copy_is_told_with_the_number_of_all_of_them(tmp_path: Path) -> None:
    told: list[int] = []
    study = make_study(tmp_path)
    shifted = load_study(
        shift_study(study, tmp_path / "out", ("gamma", "noisy"), lambda copy, total: told.append(total)), tmp_path
    )
    copies = [case for case in shifted.cases if case.split != "train"]
    assert told == [len(copies)] * len(copies)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_shifts_change_the_values_as_they_say(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit = generator.random((8, 8, 8)).astype(np.float32)
    unit.flat[:2] = 0, 1
    assert np.allclose(SHIFTS["inverted"](unit, generator) + unit, 1)
    bent = SHIFTS["gamma"](unit, generator)
    assert bent.min() == 0
    assert bent.max() == 1
    assert np.array_equal(np.argsort(bent, axis=None), np.argsort(unit, axis=None))
    ratio = SHIFTS["biased"](unit, generator)[unit > 0] / unit[unit > 0]
    assert ratio.min() > 0
    assert np.isclose(SHIFTS["biased"](unit, generator).max(), 1)
    assert np.std(SHIFTS["noisy"](unit, generator) - unit) == pytest.approx(0.1, rel=0.2)
    assert SHIFTS["coarse"](unit, generator).std() < unit.std()


def test_an_unknown_shift_names_the_closest(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"unknown shift 'invert'.*'inverted'"):
        choose_shifts("gamma,invert")


def test_a_study_without_held_out_cases_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, held_out=0)
    with pytest.raises(StudyError, match="no case is held out"):
        shift_study(study, tmp_path / "out", ("gamma",))
