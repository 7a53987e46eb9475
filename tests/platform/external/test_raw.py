from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dropgen.features.studies.labelling import labelling_of
from dropgen.features.studies.phantom import make_phantom_study
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.external.raw import channel_names, place_images, write_dataset, write_split
from tests_support.tiny import SPEC


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("raw")
    return load_study(make_phantom_study(root / "study", spec=SPEC), root)


def test_every_labelled_case_is_there_with_its_voxels_and_its_grid(study: Study, tmp_path: Path) -> None:
    cases = study.split("train") + study.split("val")
    write_dataset(tmp_path, study, cases)
    assert {path.name for path in (tmp_path / "imagesTr").iterdir()} == {f"{case.id}_0000.nii.gz" for case in cases}
    assert {path.name for path in (tmp_path / "labelsTr").iterdir()} == {f"{case.id}.nii.gz" for case in cases}
    for case in cases:
        assert case.label is not None
        for read, source, name in (
            (read_volume, case.image, f"imagesTr/{case.id}_0000.nii.gz"),
            (read_mask, case.label, f"labelsTr/{case.id}.nii.gz"),
        ):
            expected, found = read(source), read(tmp_path / name)
            np.testing.assert_array_equal(found.array, expected.array)
            np.testing.assert_array_equal(found.affine, expected.affine)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert sorted(description["labels"].values()) == list(range(len(study.classes)))
    assert description["labels"]["background"] == 0
    assert description["numTraining"] == len(cases)
    assert description["file_ending"] == ".nii.gz"


def test_compressed_files_are_linked_and_others_compressed_byte_for_byte(study: Study, tmp_path: Path) -> None:
    first, second = study.split("train")[:2]
    plain = tmp_path / "plain.nii"
    plain.write_bytes(gzip.decompress(second.image.read_bytes()))
    place_images(tmp_path / "images", [first, replace(second, images=(plain,))])
    linked, copied = (tmp_path / "images" / f"{case.id}_0000.nii.gz" for case in (first, second))
    assert linked.is_symlink()
    assert linked.resolve() == first.image.resolve()
    assert not copied.is_symlink()
    assert gzip.decompress(copied.read_bytes()) == plain.read_bytes()


def test_writing_again_replaces_what_was_there(study: Study, tmp_path: Path) -> None:
    write_dataset(tmp_path, study, study.split("train"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    write_dataset(tmp_path, study, study.split("train"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_class_may_have_a_name_that_nnunet_reserves(study: Study, tmp_path: Path) -> None:
    write_dataset(tmp_path, replace(study, classes=("air", "ignore", "background")), study.split("train"))
    labels = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    assert "ignore" not in labels
    assert sorted(labels.values()) == [0, 1, 2]
    assert labels["background"] == 0


def test_regions_and_voxels_to_ignore_are_nnunets_own(study: Study, tmp_path: Path) -> None:
    classes = (*study.classes, "last")
    regions = replace(
        study, classes=classes, regions=((1, 2, 3), (3,), (2, 3)), regions_class_order=(1, 3, 2), ignore=4
    )
    write_dataset(tmp_path, regions, study.split("train"))
    description = json.loads((tmp_path / "dataset.json").read_text())
    again = labelling_of(description["labels"], description["regions_class_order"], "here")
    assert (again.regions, again.order, again.ignore) == (regions.regions, regions.regions_class_order, 4)
    write_dataset(tmp_path, replace(study, ignore=3), study.split("train"))
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert "regions_class_order" not in description
    assert labelling_of(description["labels"], (), "here").ignore == 3


@pytest.mark.parametrize(
    ("intensity", "modality", "expected"),
    [("minmax", None, "MRI"), ("hu", None, "CT"), ({"ct": "hu", "mr": "minmax"}, "ct", "CT"),
     ({"ct": "hu", "mr": "minmax"}, "mr", "MRI")],
)  # fmt: skip
def test_training_volumes_in_hounsfield_units_are_normalised_as_ct(
    study: Study, intensity: str | dict[str, str], modality: str | None, expected: str
) -> None:
    cases = tuple(replace(case, modality=modality) for case in study.cases)
    assert channel_names(replace(study, intensity=intensity, cases=cases)) == (expected,)


def test_the_split_is_one_fold_of_the_studys_own(study: Study, tmp_path: Path) -> None:
    train, val = study.split("train"), study.split("val")
    write_split(tmp_path / "splits_final.json", train, val)
    (fold,) = json.loads((tmp_path / "splits_final.json").read_text())
    assert fold == {"train": [case.id for case in train], "val": [case.id for case in val]}
