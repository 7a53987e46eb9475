from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dropgen.__main__ import main
from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.splits import shuffled
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import write_mask, write_volume

SOURCE = {
    "folder": "bids",
    "images": "sub-{subject}/ses-*/anat/*_{domain}.nii.gz",
    "labels": "derivatives/seg/sub-{subject}/*_dseg.nii.gz",
    "splits": {"train": ["01", "02"], "val": ["03"], "test": ["04"]},
}
PEOPLE = ("01", "02", "03", "04")


class Bids:
    """A BIDS folder of four people with two sequences each and one mask for both; change `source`, then `load()`."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path / "bids"
        self.source: dict[str, Any] = json.loads(json.dumps(SOURCE))
        for person in PEOPLE:
            for name in ("T1w", "T2w"):
                self.image(self.place(person, name))
            self.mask(f"derivatives/seg/sub-{person}/sub-{person}_dseg.nii.gz")

    def place(self, person: str, name: str = "T1w", session: str = "1") -> Path:
        return self.folder / f"sub-{person}/ses-{session}/anat/sub-{person}_ses-{session}_{name}.nii.gz"

    def image(self, path: Path) -> Path:
        write_volume(path, np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32), np.eye(4))
        return path

    def mask(self, name: str) -> Path:
        write_mask(self.folder / name, np.ones((5, 6, 7)), np.eye(4))
        return self.folder / name

    def write(self) -> Path:
        settings = {
            "name": "bids", "source": self.source, "classes": ["background", "organ"], "spacing": [1, 1, 1],
            "crop": [4, 4, 4],
        }  # fmt: skip
        (self.path / "study.yaml").write_text(yaml.safe_dump(settings))
        return self.path / "study.yaml"

    def load(self) -> Study:
        return load_study(self.write(), self.path)

    def problems(self) -> tuple[str, ...]:
        with pytest.raises(StudyError) as caught:
            self.load()
        return caught.value.problems


@pytest.fixture
def bids(tmp_path: Path) -> Bids:
    return Bids(tmp_path)


def test_people_domains_and_labels_come_out_of_the_paths(bids: Bids) -> None:
    study = bids.load()
    assert [(case.id, case.subject, case.domain, case.split) for case in study.cases[:3]] == [
        ("sub-01_ses-1_T1w", "01", "T1w", "train"),
        ("sub-01_ses-1_T2w", "01", "T2w", "train"),
        ("sub-02_ses-1_T1w", "02", "T1w", "train"),
    ]
    assert {case.split: case.subject for case in study.cases} == {"train": "02", "val": "03", "test": "04"}
    for case in study.cases:
        assert case.label == bids.folder / f"derivatives/seg/sub-{case.subject}/sub-{case.subject}_dseg.nii.gz"


def test_a_split_takes_its_own_domains(bids: Bids) -> None:
    bids.source["domains"] = {"train": ["T1w"], "val": ["T2w"], "test": ["T2w"]}
    study = bids.load()
    assert study.train_domains == {"T1w"}
    assert [(case.subject, case.domain) for case in study.cases] == [
        ("01", "T1w"), ("02", "T1w"), ("03", "T2w"), ("04", "T2w"),
    ]  # fmt: skip
    bids.source["domains"]["val"] = ["T2"]
    assert bids.problems() == ("domains.val names 'T2', which no image has; did you mean 'T2w'?",)


def test_shares_divide_people_by_the_split_seed(bids: Bids) -> None:
    bids.source["splits"] = {"train": 0.5, "val": 0.25, "test": 0.25}
    cases = bids.load().cases
    order = shuffled(PEOPLE)
    assert {case.subject for case in cases if case.split == "train"} == set(order[:2])
    assert {case.subject for case in cases if case.split == "val"} == {order[2]}
    assert {case.subject for case in cases if case.split == "test"} == {order[3]}
    bids.source["splits"] = {"train": 0.95, "val": 0.05}
    assert bids.problems() == ("val: a share of 0.05 of 4 people is nobody",)


def test_whoever_is_left_out_is_in_no_split(bids: Bids) -> None:
    bids.source["splits"] = {"train": ["01", "02"], "val": ["03"]}
    assert bids.problems() == (f"subject 04: in no split; add them to one or to leave_out ({bids.place('04')})",)
    bids.source["leave_out"] = ["04"]
    assert {case.subject for case in bids.load().cases} == {"01", "02", "03"}


def test_what_both_patterns_keep_pairs_a_label_with_its_image(bids: Bids) -> None:
    bids.image(bids.place("01", session="2"))
    second = bids.mask("derivatives/seg/sub-01/sub-01_ses-2_dseg.nii.gz")
    first = bids.folder / "derivatives/seg/sub-01/sub-01_dseg.nii.gz"
    found = [line for line in bids.problems() if str(bids.place("01", session="2")) in line]
    assert found == [f"{bids.place('01', session='2')}: 2 labels fit it, {first}, {second}; narrow 'labels'"]
    for person in PEOPLE:
        name = bids.folder / f"derivatives/seg/sub-{person}/sub-{person}"
        Path(f"{name}_dseg.nii.gz").rename(f"{name}_ses-1_dseg.nii.gz")
    bids.source["images"] = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_{domain}.nii.gz"
    bids.source["labels"] = "derivatives/**/sub-{subject}_ses-{session}_dseg.nii.gz"
    assert {case.id: case.label for case in bids.load().cases}["sub-01_ses-2_T1w"] == second


def test_an_image_without_its_label_is_named_unless_it_is_a_test_case(bids: Bids) -> None:
    for person in ("03", "04"):
        (bids.folder / f"derivatives/seg/sub-{person}/sub-{person}_dseg.nii.gz").unlink()
    wanted = f"no label fits '{SOURCE['labels']}' and split val needs one"
    assert bids.problems() == tuple(f"{bids.place('03', name)}: {wanted}" for name in ("T1w", "T2w"))
    bids.source["splits"] = {"train": ["01", "02"], "test": ["03", "04"]}
    assert {case.label for case in bids.load().split("test")} == {None}


def test_a_label_without_an_image_is_named(bids: Bids) -> None:
    lonely = bids.mask("derivatives/seg/sub-09/sub-09_dseg.nii.gz")
    assert bids.problems() == (f"{lonely}: label without an image",)


def test_a_person_in_two_splits_is_named_with_an_image(bids: Bids) -> None:
    bids.source["splits"]["test"] = ["04", "01"]
    assert bids.problems() == (f"subject 01: in train and test; one place takes them ({bids.place('01')})",)
    bids.source["splits"]["test"] = ["04", "05"]
    assert bids.problems() == (f"subject 05: named in test, and no image of '{SOURCE['images']}' is theirs",)


def test_nothing_that_fits_is_an_error_that_names_pattern_and_folder(bids: Bids) -> None:
    bids.source["images"] = "subject-{subject}/*_{domain}.nii.gz"
    with pytest.raises(StudyError, match=r"no NIfTI file in .*bids fits images: 'subject-"):
        bids.load()


def test_a_file_in_another_persons_folder_is_never_skipped_in_silence(bids: Bids) -> None:
    bids.source["images"] = "sub-{subject}/ses-*/anat/sub-{subject}_*_{domain}.nii.gz"
    stray = bids.place("01").rename(bids.place("01").with_name("sub-02_ses-1_T1w.nii.gz"))
    assert [line for line in bids.problems() if str(stray) in line and "differ from its twin" in line]


def test_masks_beside_the_images_are_no_images(bids: Bids) -> None:
    for person in PEOPLE:
        bids.mask(f"sub-{person}/ses-1/anat/sub-{person}_ses-1_dseg.nii.gz")
    bids.source["labels"] = "sub-{subject}/ses-*/anat/*_dseg.nii.gz"
    assert {case.domain for case in bids.load().cases} == {"T1w", "T2w"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": "*_{domain}.nii.gz"}, "the pattern needs {subject}"),
        ({"imags": "x"}, "unknown key 'imags'; did you mean 'images'"),
        ({"splits": {"train": 0.5, "val": ["03"]}}, "not both"),
        ({"splits": {"train": 0.5, "val": 0.6}}, "must sum to 1"),
        ({"splits": {"train": [1], "val": ["03"]}}, 'write the subject 1 as "1"'),
        ({"images": "sub-{subject}/*.nii.gz", "domains": {"train": ["T1w"]}}, "which the pattern of images does not"),
        ({"splits": {"train": 1.0}, "domains": {"val": ["T1w"]}}, "domains names split val, and splits does not"),
    ],
)
def test_a_wrong_source_is_told_in_the_file_that_holds_it(bids: Bids, change: dict[str, Any], said: str) -> None:
    bids.source |= change
    with pytest.raises(ConfigError) as caught:
        bids.load()
    assert said in str(caught.value) and "study.yaml: source" in str(caught.value)


def test_the_check_opens_what_the_patterns_name(
    bids: Bids, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["study", "check", str(bids.write()), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["splits"], found["domains"]) == ({"train": 4, "val": 2, "test": 2}, {"T1w": 4, "T2w": 4})
    write_mask(bids.folder / "derivatives/seg/sub-01/sub-01_dseg.nii.gz", np.full((5, 6, 7), 3), np.eye(4))
    assert main(["study", "check", str(bids.write())]) == 2
    assert "case sub-01_ses-1_T1w: label value 3" in capsys.readouterr().err


def test_a_plan_is_made_of_it(bids: Bids, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", str(bids.write()), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"] == 4
