from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.study import load_study, read_study
from dropgen.features.studies.validation import validation_cases


def test_a_manifest_is_read_with_paths_relative_to_it(tiny, tmp_path: Path) -> None:
    study = load_study(tiny.write(), tmp_path)
    assert [case.id for case in study.cases] == ["one", "two", "three"]
    first = study.cases[0]
    assert (first.subject, first.domain, first.modality, first.split) == ("one", "a", None, "train")
    assert first.image == tiny.image(0) and first.label == tiny.label(0)
    assert study.train_domains == {"a"} and study.split("test") == study.cases[2:]
    assert study.preparation.spacing == (1, 1, 1) and not study.orientation_augmentation


def test_subject_domain_and_id_have_defaults(tiny, tmp_path: Path) -> None:
    for row in tiny.rows:
        del row["subject"], row["domain"]
    study = load_study(tiny.write(), tmp_path)
    assert {(case.subject == case.id, case.domain, case.modality) for case in study.cases} == {(True, "default", None)}


def test_tubes_and_domains_without_mm_are_read_and_unknown_ones_are_named(tiny, tmp_path: Path) -> None:
    assert (load_study(tiny.write(), tmp_path).placeholder_spacing, load_study(tiny.write(), tmp_path).tubular) == (
        (),
        (),
    )
    organ = tiny.settings["classes"][1]
    tiny.settings |= {"placeholder_spacing": ["a"], "tubular": [organ]}
    study = load_study(tiny.write(), tmp_path)
    assert (study.placeholder_spacing, study.tubular) == (("a",), (organ,))
    tiny.settings["placeholder_spacing"] = ["siteX"]
    with pytest.raises(StudyError) as raised:
        load_study(tiny.write(), tmp_path)
    assert any("domain 'siteX', which has no case" in line for line in raised.value.problems)
    tiny.settings |= {"placeholder_spacing": [], "tubular": ["background"]}
    with pytest.raises(ConfigError, match="tubular names 'background', which is no class"):
        load_study(tiny.write(), tmp_path)


def test_codes_are_read_and_those_that_no_dicom_file_can_hold_are_refused(tiny, tmp_path: Path) -> None:
    assert load_study(tiny.write(), tmp_path).codes == {}
    organ = tiny.settings["classes"][1]
    code = {"scheme": "SCT", "value": "87878005", "meaning": "Left ventricle"}
    tiny.settings["codes"] = {organ: code}
    found = load_study(tiny.write(), tmp_path).codes[organ]
    assert (found.scheme, found.value, found.meaning, found.abnormal) == ("SCT", "87878005", "Left ventricle", False)
    for wrong in (
        {"spleen": code},
        {organ: {**code, "meaning": "x" * 65}},
        {organ: {**code, "scheme": "S CT"}},
        {organ: {**code, "value": "a\\b"}},
        {organ: {**code, "colour": "red"}},
        {organ: {"scheme": "SCT", "value": "87878005"}},
    ):
        tiny.settings["codes"] = wrong
        with pytest.raises(ConfigError, match="codes"):
            load_study(tiny.write(), tmp_path)


def test_an_experiment_leads_to_its_study(tiny, tmp_path: Path) -> None:
    tiny.write()
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        yaml.safe_dump({"name": "e", "study": "{root}/study.yaml", "selection": {"rule": "target_validation"}})
    )
    assert load_study(experiment, tmp_path).name == "tiny"


def test_the_data_folder_may_be_named_by_the_environment(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.settings["source"] = "{data}/manifest.csv"
    study = tiny.write()
    monkeypatch.delenv("DROPGEN_DATA", raising=False)
    with pytest.raises(ConfigError, match="set it to the folder"):
        load_study(study, tmp_path)
    monkeypatch.setenv("DROPGEN_DATA", str(tmp_path))
    assert len(load_study(study, tmp_path).cases) == 3


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("spacng", [1, 1, 1], "unknown key 'spacng'; did you mean 'spacing'"),
        ("spacing", [1, 1, 0], "spacing.2 = 0"),
        ("spacing", [1, 1], "spacing"),
        ("crop", [4, 4, 2.5], "crop.2 = 2.5"),
        ("classes", ["background"], "classes"),
        ("classes", ["a", "a"], "a name of its own"),
        ("intensity", "minmx", "did you mean 'minmax'"),
        ("intensity", {"ct": "hu", "mr": "zskore"}, "did you mean 'zscore'"),
        ("name", "a/b", "name = 'a/b'"),
    ],
)
def test_a_wrong_key_or_value_is_named(tiny, tmp_path: Path, key: str, value: object, word: str) -> None:
    tiny.settings[key] = value
    with pytest.raises(ConfigError) as caught:
        load_study(tiny.write(), tmp_path)
    assert word in str(caught.value)


def test_a_missing_key_is_named(tiny, tmp_path: Path) -> None:
    del tiny.settings["classes"]
    with pytest.raises(ConfigError, match="key 'classes' is missing"):
        load_study(tiny.write(), tmp_path)


def test_missing_sources_and_columns_are_named(tiny, tmp_path: Path) -> None:
    tiny.settings["source"] = "nowhere"
    with pytest.raises(StudyError, match="nowhere does not exist"):
        load_study(tiny.write(), tmp_path)
    tiny.settings["source"] = "manifest.csv"
    for row in tiny.rows:
        row["domian"] = row.pop("domain")
    with pytest.raises(StudyError, match="unknown column 'domian'; did you mean 'domain'"):
        load_study(tiny.write(), tmp_path)
    for row in tiny.rows:
        del row["split"], row["domian"]
    with pytest.raises(StudyError, match="no column 'split'"):
        load_study(tiny.write(), tmp_path)


def test_broken_lines_are_numbered(tiny, tmp_path: Path) -> None:
    study = tiny.write()
    (tmp_path / "manifest.csv").write_text("image,label,split\na.nii,b.nii,train\n,c.nii,train\na.nii,b.nii,train,x\n")
    with pytest.raises(StudyError) as caught:
        load_study(study, tmp_path)
    assert caught.value.problems == (
        "line 4: more cells than the header has columns",
        "line 3: no image is named",
    )
    (tmp_path / "manifest.csv").write_text("image,label,split\n")
    with pytest.raises(StudyError, match="lists no cases"):
        load_study(study, tmp_path)


def broken(tiny, tmp_path: Path) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        load_study(tiny.write(), tmp_path)
    return caught.value.problems


def test_every_broken_case_is_listed_at_once(tiny, tmp_path: Path) -> None:
    tiny.rows[0]["split"] = "trian"
    tiny.rows[1]["label"] = ""
    tiny.image(2).unlink()
    problems = broken(tiny, tmp_path)
    assert problems == (
        "case one: split 'trian' is unknown; did you mean 'train'?",
        "case two: split val needs a label and none is named",
        f"case three: image {tiny.image(2)} does not exist",
        "no case has split train; a study needs cases to train on",
    )


def test_a_missing_label_file_is_named_and_pairs_never_shift(tiny, tmp_path: Path) -> None:
    tiny.label(0).unlink()
    assert broken(tiny, tmp_path) == (f"case one: label {tiny.label(0)} does not exist",)


def test_a_test_case_needs_no_label(tiny, tmp_path: Path) -> None:
    tiny.rows[2]["label"] = ""
    assert load_study(tiny.write(), tmp_path).cases[2].label is None


@pytest.mark.parametrize("name", ["zarr.json", "Zarr.JSON", ".hidden", "a b", "é", "x" * 65, "-a", "a/b"])
def test_an_illegal_id_is_named(tiny, tmp_path: Path, name: str) -> None:
    for row, case in zip(tiny.rows, (name, "two", "three"), strict=True):
        row["id"] = case
    assert any(f"id '{name}' is not allowed" in line for line in broken(tiny, tmp_path))


def test_ids_are_unique_whatever_their_case(tiny, tmp_path: Path) -> None:
    for row, case in zip(tiny.rows, ("Anna", "anna", "other"), strict=True):
        row["id"] = case
    assert broken(tiny, tmp_path) == ("case Anna: 2 cases have this id, upper and lower case being the same",)


def test_one_image_is_one_case(tiny, tmp_path: Path) -> None:
    for row, case in zip(tiny.rows, ("one", "two", "other"), strict=True):
        row["id"] = case
    tiny.rows[2]["image"] = tiny.rows[0]["image"]
    assert broken(tiny, tmp_path) == (f"case other: image {tiny.image(0)} is already the image of case one",)


def test_a_subject_belongs_to_one_split(tiny, tmp_path: Path) -> None:
    tiny.rows[2]["subject"] = tiny.rows[0]["subject"]
    assert broken(tiny, tmp_path) == ("subject one: in splits test and train; a subject belongs to one",)


def test_a_case_without_the_modality_that_its_scaling_needs_is_named(tiny, tmp_path: Path) -> None:
    tiny.settings["intensity"] = {"ct": "hu", "mr": "minmax"}
    for row, modality in zip(tiny.rows, ("ct", "mr", "pet"), strict=True):
        row["modality"] = modality
    assert broken(tiny, tmp_path) == (
        "case three: modality 'pet' has no intensity rule; the study has rules for ct, mr",
    )


def nnunet(tiny, root: Path) -> Path:
    """The same study as an nnU-Net raw folder without a manifest."""
    for index, folders in enumerate((("imagesTr", "labelsTr"), ("imagesVal", "labelsVal"), ("imagesTs", "labelsTs"))):
        for source, folder in zip((tiny.image(index), tiny.label(index)), folders, strict=True):
            (root / "raw" / folder).mkdir(parents=True)
            source.rename(root / "raw" / folder / source.name)
    tiny.settings["source"] = "raw"
    return tiny.write()


def test_an_nnunet_folder_is_paired_by_id(tiny, tmp_path: Path) -> None:
    study = nnunet(tiny, tmp_path)
    assert [(case.id, case.split) for case in load_study(study, tmp_path).cases] == [
        ("one", "train"), ("two", "val"), ("three", "test"),
    ]  # fmt: skip
    (tmp_path / "raw/labelsTs/three.nii.gz").unlink()
    assert load_study(study, tmp_path).cases[2].label is None
    (tmp_path / "raw/labelsVal/two.nii.gz").unlink()
    with pytest.raises(StudyError, match=r"case two: label .*labelsVal/two.nii.gz does not exist"):
        load_study(study, tmp_path)


def test_second_channels_and_lonely_labels_of_an_nnunet_folder_are_named(tiny, tmp_path: Path) -> None:
    study = nnunet(tiny, tmp_path)
    raw = tmp_path / "raw"
    (raw / "imagesTr/one_0001.nii.gz").touch()
    (raw / "labelsTs/four.nii.gz").touch()
    with pytest.raises(StudyError) as caught:
        load_study(study, tmp_path)
    assert caught.value.problems == (
        f"{raw}/imagesTr/one_0001.nii.gz: channel 1; a case has one channel, one_0000",
        f"{raw}/labelsTs/four.nii.gz: label without an image in imagesTs",
    )


def test_a_manifest_beside_an_nnunet_folder_wins(tiny, tmp_path: Path) -> None:
    study = nnunet(tiny, tmp_path)
    manifest = tmp_path / "raw/manifest.csv"
    manifest.write_text("id,subject,domain,split\ntwo,s2,site b,test\n")
    cases = load_study(study, tmp_path).cases
    assert [(case.id, case.subject, case.domain, case.split) for case in cases] == [
        ("one", "one", "default", "train"), ("two", "s2", "site b", "test"), ("three", "three", "default", "test"),
    ]  # fmt: skip
    manifest.write_text("image,label,split\nimagesTr/one_0000.nii.gz,labelsTr/one.nii.gz,train\n")
    assert [case.id for case in load_study(study, tmp_path).cases] == ["one"]
    manifest.write_text("id,domain\nnobody,a\n")
    with pytest.raises(StudyError, match="nobody"):
        load_study(study, tmp_path)


def test_selection_rules_choose_validation_cases_by_domain(tiny, tmp_path: Path) -> None:
    study = load_study(tiny.write(), tmp_path)
    assert [case.id for case in validation_cases(study, "target_validation")] == ["two"]
    assert [case.id for case in validation_cases(study, "all_validation")] == ["two"]
    with pytest.raises(StudyError, match="source_validation, validation domains are b and training domains a"):
        validation_cases(study, "source_validation")
    tiny.rows[1]["domain"] = "a"
    study = load_study(tiny.write(), tmp_path)
    assert [case.id for case in validation_cases(study, "source_validation")] == ["two"]
    with pytest.raises(StudyError, match=r"change selection\.rule"):
        validation_cases(study, "target_validation")


@pytest.mark.parametrize(("name", "cases"), [("cardiac", 38), ("hippocampus", 100), ("brats2013", 4)])
def test_real_manifests_are_read(tiny, tmp_path: Path, data: Path, name: str, cases: int) -> None:
    tiny.settings["source"] = str(data / name / "manifest.csv")
    assert len(load_study(tiny.write(), tmp_path).cases) == cases


def few(tiny, tmp_path: Path, rows: list[dict[str, str]], count: int) -> list[str]:
    """The ids of the training cases that are kept; no volume is opened."""
    tiny.rows[:] = [{"image": "images/one_0000.nii.gz", "label": "labels/one.nii.gz", **row} for row in rows]
    tiny.settings["few_shot"] = count
    return [case.id for case in read_study(tiny.write(), tmp_path).cases if case.split == "train"]


def test_few_shot_keeps_the_published_five_hearts(tiny, tmp_path: Path) -> None:
    train = [0, 1, 2, 5, 6, 8, 10, 11, 13, 18, 26, 27, 7, 14, 15, 19, 23, 24, 25, 29, 48, 17, 12]
    rows = [{"id": f"pat{i}_cropped", "subject": f"pat{i}", "split": "train"} for i in train]
    assert set(few(tiny, tmp_path, rows, 5)) == {f"pat{i}_cropped" for i in (5, 11, 13, 1, 17)}
    assert len(few(tiny, tmp_path, rows, 23)) == 23


def test_few_shot_counts_people_and_leaves_who_is_held_out(tiny, tmp_path: Path) -> None:
    rows = [
        {"id": f"s{i}_{name}", "subject": f"s{i}", "split": "train" if i < 7 else "val"}
        for i in range(9)
        for name in ("t1", "t2", "t1c")
    ]
    kept = few(tiny, tmp_path, rows, 2)
    people = {name.partition("_")[0] for name in kept}
    assert len(people) == 2 and len(kept) == 6
    assert few(tiny, tmp_path, rows[::-1], 2) == kept[::-1]  # not a matter of the manifest's order
    assert len(read_study(tiny.write(), tmp_path).split("val")) == 6
    assert people < {name.partition("_")[0] for name in few(tiny, tmp_path, rows, 3)}


def test_more_few_shot_people_than_there_are_is_refused(tiny, tmp_path: Path) -> None:
    tiny.settings["few_shot"] = 2
    with pytest.raises(StudyError, match="few_shot = 2: the study has 1 subject to train on; lower it"):
        load_study(tiny.write(), tmp_path)
    tiny.settings["few_shot"] = 0
    with pytest.raises(ConfigError, match="few_shot = 0"):
        load_study(tiny.write(), tmp_path)
