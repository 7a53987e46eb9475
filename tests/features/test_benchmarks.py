"""Who is in which split, by the golden permutations of the released code, and what a conversion writes."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.benchmarks import BENCHMARKS, benchmark_of
from dropgen.features.studies.benchmarks.benchmark import Archive
from dropgen.features.studies.convert import Conversion, convert
from dropgen.features.studies.splits import shuffled
from dropgen.features.studies.volume import read_mask, read_volume
from tests_support import archives


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def order(name: str, raw: Path) -> dict[str, list[int]]:
    """The numbers of the people of each split, in the order of the list of cases, each once."""
    archive = Archive(raw)
    items = BENCHMARKS[name].find(archive, frozenset())
    assert archive.problems == []
    found: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for item in items:
        number = int("".join(filter(str.isdigit, item.subject)))
        if number not in found[item.split]:
            found[item.split].append(number)
    return found


def test_ten_items_are_shuffled_as_the_released_code_does() -> None:
    assert shuffled(range(10)) == [7, 4, 0, 2, 1, 5, 6, 8, 3, 9] == shuffled(tuple(range(10)))


def test_brats_is_split_as_published(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        touch(tmp_path / folder, *(f"BRATS_{i:03}.nii.gz" for i in range(1, 485)))
    found = order("brats", tmp_path)
    assert found["train"][:5] == [77, 205, 199, 37, 441] and len(found["train"]) == 340
    assert found["val"][:5] == [294, 276, 207, 350, 422] and len(found["val"]) == 48
    assert found["test"][:5] == [427, 71, 41, 67, 8] and len(found["test"]) == 96


def test_amos_halves_its_labelled_mr_as_published(tmp_path: Path) -> None:
    mr = [*range(507, 547), *range(551, 571)]
    for part, numbers in (("Tr", [*range(1, 201), *mr[:40]]), ("Va", [*range(201, 301), *mr[40:]])):
        for folder in ("images", "labels"):
            touch(tmp_path / f"{folder}{part}", *(f"amos_{i:04}.nii.gz" for i in numbers))
    found = order("amos", tmp_path)
    assert [mr.index(number) for number in found["val"]][:8] == [20, 15, 34, 40, 51, 59, 30, 32]
    assert [mr.index(number) for number in found["test"]][:6] == [44, 45, 57, 39, 29, 53]
    assert found["train"] == list(range(1, 201))
    more = BENCHMARKS["amos"].find(Archive(tmp_path), frozenset({"include_va_ct"}))
    assert sum(item.split == "train" for item in more) == 300
    assert [item.id for item in more if item.split == "val"] == [f"amos_{i:04}" for i in found["val"]]


# The release numbers its people 1 to 90 and 131 to 165; the golden values are for 1 to 125.
@pytest.mark.parametrize("numbers", [list(range(1, 126)), [*range(1, 91), *range(131, 166)]])
def test_cow_is_split_as_published(tmp_path: Path, numbers: list[int]) -> None:
    for i in numbers:
        touch(tmp_path / "imagesTr", f"topcow_ct_{i:03}_0000.nii.gz", f"topcow_mr_{i:03}_0000.nii.gz")
        touch(tmp_path / "cow_seg_labelsTr", f"topcow_ct_{i:03}.nii.gz", f"topcow_mr_{i:03}.nii.gz")
    found = {split: [numbers.index(i) + 1 for i in people] for split, people in order("cow", tmp_path).items()}
    assert found["train"][:6] == [32, 117, 115, 51, 16, 91]
    assert found["val"][:5] == [27, 114, 97, 102, 93]
    assert found["test"][:5] == [122, 30, 70, 28, 98]


@pytest.mark.parametrize("labels", ["beside", "labs"])
def test_hvsmr_is_split_as_published(tmp_path: Path, labels: str) -> None:
    touch(tmp_path / "cropped", *(f"pat{i}_cropped.nii.gz" for i in range(60)))
    if labels == "labs":
        touch(tmp_path / "labs", *(f"pat{i}_labels.nii.gz" for i in range(60)))
    else:
        touch(tmp_path / "cropped", *(f"pat{i}_cropped_seg.nii.gz" for i in range(60)))
    found = order("hvsmr", tmp_path)
    assert set(found["train"]) == {0, 1, 2, *range(5, 9), *range(10, 16), 17, 18, 19, *range(23, 28), 29, 48}
    assert found["val"] == [21, 35, 16, 45, 32, 22, 3, 58, 47, 56, 42, 28, 55, 44, 36, 39, 31, 33]
    assert found["test"] == [20, 54, 9, 50, 53, 49, 52, 59, 40, 43, 34, 37, 57, 41, 30, 46, 51, 4, 38]


def small_cow(raw: Path, *values: int) -> None:
    archives.cow(raw)
    archives.label(raw / "cow_seg_labelsTr/topcow_ct_032.nii.gz", *values)


def label_of(made: Conversion, case: str) -> Path:
    return next(item.label for item in made.items if item.id == case)


def test_a_label_is_written_only_where_a_value_changes(tmp_path: Path) -> None:
    small_cow(tmp_path / "raw", 1, 12)
    made = convert(BENCHMARKS["cow"], tmp_path / "raw", tmp_path / "out")
    assert label_of(made, "topcow_ct_032").is_relative_to(tmp_path / "raw")
    archives.label(tmp_path / "raw/cow_seg_labelsTr/topcow_ct_032.nii.gz", 1, 15, 12)
    again = convert(BENCHMARKS["cow"], tmp_path / "raw", tmp_path / "out")
    assert (made.written, again.written, again.reused) == (25, 1, 25)
    source = read_mask(tmp_path / "raw/cow_seg_labelsTr/topcow_ct_032.nii.gz")
    target = read_mask(label_of(again, "topcow_ct_032"))
    assert np.array_equal(target.array, np.where(source.array == 15, 13, source.array))
    assert np.array_equal(target.affine, source.affine)


def test_unknown_label_values_are_listed_and_leave_no_manifest(tmp_path: Path) -> None:
    small_cow(tmp_path / "raw", 1, 13, 14, 15)
    with pytest.raises(StudyError) as caught:
        convert(BENCHMARKS["cow"], tmp_path / "raw", tmp_path / "out")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].endswith("topcow_ct_032.nii.gz: label value 13, 14 is none of cow's")
    assert not (tmp_path / "out/manifest.csv").exists()


def test_every_nonzero_value_of_a_prostate_is_the_gland(tmp_path: Path) -> None:
    archives.prostate(tmp_path / "raw")
    made = convert(BENCHMARKS["prostate"], tmp_path / "raw", tmp_path / "out")
    source = read_mask(tmp_path / "raw/RUNMC/Case03_segmentation.nii.gz").array
    assert np.array_equal(read_mask(label_of(made, "RUNMC_Case03")).array, source > 0) and source.max() == 2
    assert label_of(made, "BMC_Case03") == tmp_path / "raw/BMC/Case03_Segmentation.nii.gz"


def test_a_stopped_brats_conversion_goes_on_and_a_changed_file_is_split_again(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    archives.brats(raw)
    convert(BENCHMARKS["brats"], raw, out)
    four = nib.load(raw / "imagesTr/BRATS_077.nii.gz")
    for position, name in enumerate(("FLAIR", "T1w", "T1wGAD", "T2")):
        path = out / name / f"BRATS_077_{name}.nii.gz"
        assert path.exists() is (name != "FLAIR")  # a train case: its FLAIR is the unseen domain
        if path.exists():
            channel = read_volume(path)
            assert np.array_equal(channel.array, np.asarray(four.dataobj)[..., position])
            assert np.array_equal(channel.affine, four.affine)
    (out / "T2/BRATS_077_T2.nii.gz").unlink()
    (out / "T1w/BRATS_205_T1w.nii.gz").write_bytes(b"half of a file")
    archives.image(raw / "imagesTr/BRATS_294.nii.gz", channels=4)
    (out / "manifest.csv").unlink()
    again = convert(BENCHMARKS["brats"], raw, out)
    assert (again.written, again.reused) == (3, 1164 - 3)
    assert read_volume(out / "T1w/BRATS_205_T1w.nii.gz").array[0, 0, 0] == 100
    with (out / "manifest.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1164


def test_other_channels_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        touch(tmp_path / folder, *(f"BRATS_{i:03}.nii.gz" for i in range(1, 485)))
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}')
    assert order("brats", tmp_path)["val"][0] == 294
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1w", "1": "FLAIR", "2": "t1gd", "3": "T2w"}}')
    with pytest.raises(StudyError, match=r"dataset\.json: expected the channels .*, found .*'0': 'T1w'"):
        convert(BENCHMARKS["brats"], tmp_path, tmp_path.with_name("out"))


def test_a_study_file_that_was_changed_by_hand_is_kept(tmp_path: Path) -> None:
    archives.pandg(tmp_path / "raw")
    study = convert(BENCHMARKS["pandg"], tmp_path / "raw", tmp_path / "out").study
    study.write_text(study.read_text().replace("4.4", "4.0"))
    again = convert(BENCHMARKS["pandg"], tmp_path / "raw", tmp_path / "out")
    assert "4.0" in study.read_text() and "was kept; remove it" in again.warnings[0]


def test_a_scan_of_pandg_in_two_folders_is_named(tmp_path: Path) -> None:
    archives.pandg(tmp_path / "raw")
    archives.image(tmp_path / "raw/test/images/scan00.nii.gz")
    archives.label(tmp_path / "raw/test/labels/scan00.nii.gz", 1)
    with pytest.raises(StudyError, match=r"scan00 is in train/ and in test/; a person belongs to one split"):
        convert(BENCHMARKS["pandg"], tmp_path / "raw", tmp_path / "out")


def test_unknown_names_and_flags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hvsmr'"):
        benchmark_of("hvsm")
    with pytest.raises(ConfigError, match="hvsmr has no include_va_ct"):
        convert(BENCHMARKS["hvsmr"], tmp_path / "raw", tmp_path / "out", frozenset({"include_va_ct"}))


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "pandg"),
        ("convert", "pandg", "raw"),
        ("check", "a.yaml", "b"),
        ("check", "a.yaml", "--include-va-ct"),
    ],
)
def test_arguments_of_the_other_action_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", *words]) == 2
    assert "study c" in capsys.readouterr().err
