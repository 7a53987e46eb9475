from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dropgen.errors import ConfigError, StudyError
from dropgen.features.plan import make_plan
from dropgen.features.plan_page import snippet
from dropgen.features.studies.check import check_study
from dropgen.features.studies.fingerprint import take_fingerprint
from dropgen.features.studies.labelling import Labelling, described_labelling, labelling_of
from dropgen.features.studies.shift import shift_study
from dropgen.features.studies.study import load_study, read_study
from dropgen.features.studies.volume import read_mask, write_mask

BRATS = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}
ORDER = [1, 2, 3]


def test_regions_are_lists_of_values_in_the_order_in_which_they_are_written() -> None:
    found = labelling_of(BRATS, ORDER, "here")
    assert found == Labelling(("background", "whole tumour", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3))
    assert (found.outputs, found.last, found.highest, found.plain) == (3, 3, 3, False)
    assert found.names == ("background", "whole tumour only", "core only", "enhancing")


def test_lists_of_one_value_are_classes_and_classes_go_by_value() -> None:
    found = labelling_of({"tumour": [2], "background": 0, "liver": 1, "ignore": 3}, (), "here")
    assert found == Labelling(("background", "liver", "tumour"), ignore=3)
    assert (found.outputs, found.last, found.highest, found.plain) == (3, 2, 3, False)


@pytest.mark.parametrize(
    ("labels", "order", "said"),
    [
        ({"liver": 1}, (), "needs background: 0, and has none"),
        ({"background": [0], "liver": 1}, (), r"needs background: 0, and has \[0\]"),
        ({"background": 0, "liver": 2}, (), "values of labels are 0, 2; leave no gap"),
        ({"background": 0, "liver": 1, "ignore": 1}, (), "'ignore' = 1; it must be one above all others, .* at 1"),
        ({"background": 0, "liver": 1, "ignore": 3}, (), "'ignore' = 3; it must be one above"),
        ({"background": 0, "ignore": 1, "liver": 2}, (), "leave no gap"),
        ({"background": 0, "liver": 1, "other": 1}, (), "two labels have the same value"),
        ({"background": 0, "liver": [0, 1]}, (), r"label 'liver' = \[0, 1\]"),
        ({"background": 0, "liver": "1"}, (), "label 'liver' = .*write one value from 1 on, or a list"),
        ({"background": 0, "liver": None}, (), "label 'liver' = "),
        (BRATS, (), "regions_class_order has 0 values and labels 3 regions"),
        (BRATS, (1, 2), "regions_class_order has 2 values and labels 3 regions"),
        (BRATS, (1, 2, 4), "regions_class_order names value 4, which no label has"),
    ],
)
def test_labels_that_nnunet_would_refuse_are_refused(labels: dict[str, Any], order: Any, said: str) -> None:
    with pytest.raises(StudyError, match=f"here: .*{said}"):
        labelling_of(labels, order, "here")


@pytest.mark.parametrize("ignore", [None, 4])
def test_what_is_written_is_read_as_the_same(ignore: int | None) -> None:
    for labelling in (
        Labelling(("background", "b", "a"), ignore=ignore and 3),
        Labelling(("background", "b", "a"), ((1, 2, 3), (3,)), (2, 3), ignore),
    ):
        keys = yaml.safe_load(yaml.safe_dump(labelling.to_yaml(), sort_keys=False))
        again = Labelling(tuple(keys["classes"])) if "classes" in keys else labelling_of(
            keys["labels"], keys.get("regions_class_order", ()), "here"
        )  # fmt: skip
        assert again == labelling


def test_a_region_is_all_of_its_values() -> None:
    labels = np.arange(4)
    found = [labelling_of(BRATS, ORDER, "here").inside(labels, place).tolist() for place in (1, 2, 3)]
    assert found == [[False, True, True, True], [False, False, True, True], [False, False, False, True]]


def test_a_dataset_json_of_either_nnunet_is_read(tmp_path: Path) -> None:
    assert described_labelling(tmp_path) is None
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    assert described_labelling(tmp_path) == Labelling(("background", "liver"))
    labels = {**BRATS, "ignore": 4}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": ORDER}))
    assert described_labelling(tmp_path) == labelling_of(labels, ORDER, "here")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(StudyError, match=r"dataset.json: regions_class_order has 0"):
        described_labelling(tmp_path)


def test_a_study_takes_labels_instead_of_classes_or_the_dataset_json_of_its_folder(tiny, tmp_path: Path) -> None:
    del tiny.settings["classes"]
    tiny.settings |= {"labels": {"background": 0, "organ": 1, "ignore": 2}}
    study = load_study(tiny.write(), tmp_path)
    assert (study.classes, study.ignore, study.regions) == (("background", "organ"), 2, ())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": BRATS, "regions_class_order": ORDER}))
    for index in range(3):  # the same files as an nnU-Net raw folder
        for path, place in ((tiny.image(index), "images"), (tiny.label(index), "labels")):
            folder = tmp_path / (place + ("Tr", "Val", "Ts")[index])
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
    (tmp_path / "manifest.csv").write_text("id,domain\none,a\n")
    tiny.settings["source"] = "."
    del tiny.settings["labels"]
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(tiny.settings))
    study = load_study(tmp_path / "raw.yaml", tmp_path)
    assert study.labelling == labelling_of(BRATS, ORDER, "here")


def test_classes_beside_labels_are_refused(tiny, tmp_path: Path) -> None:
    tiny.settings["labels"] = {"background": 0, "organ": 1}
    with pytest.raises(ConfigError, match="classes and labels say the same"):
        load_study(tiny.write(), tmp_path)


def with_ignored(tiny) -> Path:
    del tiny.settings["classes"]
    tiny.settings["labels"] = {"background": 0, "organ": 1, "ignore": 2}
    mask = read_mask(tiny.label(0))
    mask.array[:2] = 2
    write_mask(tiny.label(0), mask.array, mask.affine)
    return tiny.write()


def test_the_check_knows_the_value_to_ignore_and_none_beyond(tiny, tmp_path: Path) -> None:
    assert check_study(read_study(with_ignored(tiny), tmp_path)) == []
    write_mask(tiny.label(1), np.full((5, 6, 7), 3), np.eye(4))
    assert check_study(read_study(tiny.path / "study.yaml", tmp_path)) == [
        "case two: label value 3 (voxels: 210) is unknown; classes are 0..1 (background, organ)"
    ]


def test_ignored_voxels_are_no_foreground_of_a_fingerprint(tiny, tmp_path: Path) -> None:
    study = load_study(with_ignored(tiny), tmp_path)
    found = take_fingerprint(study)
    assert list(found.classes) == [1]
    organ = int((read_mask(tiny.label(0)).array == 1).sum())
    assert found.classes[1].median == pytest.approx(organ / 1000)


def test_plans_and_shifted_copies_keep_what_labels_mean(tiny, tmp_path: Path) -> None:
    study = load_study(with_ignored(tiny), tmp_path)
    plan = make_plan(tiny.path / "study.yaml", tmp_path)
    assert "labels: {background: 0, organ: 1, ignore: 2}" in snippet(plan, tiny.path / "study.yaml").splitlines()
    shifted = load_study(shift_study(study, tmp_path / "shifted", ["inverted"]), tmp_path)
    assert shifted.labelling == study.labelling


def test_the_real_tumours_are_found_by_patterns_as_their_manifest_lists_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPGEN_DATA", str(data))
    configs = Path(__file__).parents[2] / "configs" / "studies"
    study = load_study(configs / "brats2013.yaml", tmp_path)
    values = {"name": "m", "source": str(data / "brats2013" / "manifest.csv"), "classes": ["background", "tumour"]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values | {"spacing": [1, 1, 1], "crop": [64, 64, 64]}))
    listed = load_study(tmp_path / "m.yaml", tmp_path)
    facts = [
        {(case.id, case.subject, case.domain, case.split, case.image, case.label) for case in one.cases}
        for one in (study, listed)
    ]
    assert facts[0] == facts[1]
