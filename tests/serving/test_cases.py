"""What an input holds, decided from content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from dropgen.errors import ConfigError, StudyError, VolumeError
from dropgen.features.studies.volume import Volume, write_volume
from dropgen.serving.cases import find_cases
from tests_support.dicom import make_slices, write_slices

VOLUME = Volume(np.arange(60, dtype=np.float32).reshape(4, 5, 3), np.diag([1.0, 1.0, 2.0, 1.0]))
ONE, TWO = UID("1.2.3.1"), UID("1.2.3.2")


def nifti(path: Path) -> None:
    write_volume(path, VOLUME.array, VOLUME.affine)


def test_names_say_nothing_where_content_speaks(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "export")
    write_slices(tmp_path / "x", make_slices(VOLUME, ONE))
    for index, file in enumerate(sorted((tmp_path / "x").iterdir())):
        file.rename(tmp_path / f"{index}.nii.gz")
    (tmp_path / "x").rmdir()
    cases = find_cases(tmp_path, tmp_path / "masks")
    assert [(scan.case, scan.series, len(scan.paths)) for scan in cases.scans] == [
        ("export", False, 1), (str(ONE), True, 3),
    ]  # fmt: skip
    for scan in cases.scans:
        np.testing.assert_array_equal(np.sort(scan.load().channels[0].array, axis=None), VOLUME.array.ravel())


def test_nothing_is_passed_over_in_silence(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    nifti(tmp_path / "deeper" / "b.nii.gz")
    (tmp_path / "notes.txt").write_text("call back")
    (tmp_path / ".hidden").write_text("")
    nifti(tmp_path / "masks" / "a.nii.gz")  # of an earlier run
    localizer = make_slices(VOLUME, ONE)
    for one in localizer:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slices(tmp_path / "deeper" / "scout", localizer)
    cases = find_cases(tmp_path, tmp_path / "masks")
    assert [scan.case for scan in cases.scans] == ["a"]
    assert [(one.case, one.file, one.outcome, one.reason) for one in cases.others] == [
        (str(ONE), "deeper/scout", "left out", "series 1, CT, 3 files: it is a localizer"),
        ("", "deeper/b.nii.gz", "left out", "NIfTI files are taken from the folder itself alone; name theirs"),
        ("", "notes.txt", "left out", "neither NIfTI nor DICOM"),
    ]  # fmt: skip


def test_where_there_is_nothing_to_segment_the_reasons_are_told(tmp_path: Path) -> None:
    derived = make_slices(VOLUME, ONE)
    for one in derived:
        one.ImageType = ["DERIVED", "SECONDARY", "MPR"]
    write_slices(tmp_path, derived)
    with pytest.raises(ConfigError, match=r"no DICOM series to segment; .*derived .*--derived takes"):
        find_cases(tmp_path, tmp_path / "masks")
    assert [scan.case for scan in find_cases(tmp_path, tmp_path / "masks", derived=True).scans] == [str(ONE)]


def test_a_manifest_names_images_and_as_wanted_ids_and_modalities(tmp_path: Path) -> None:
    nifti(tmp_path / "images" / "one.nii.gz")
    nifti(tmp_path / "images" / "two_0000.nii")
    listing = tmp_path / "list.csv"
    listing.write_text("image,id,modality\nimages/one.nii.gz,p1,mr\nimages/two_0000.nii,,\nimages/gone.nii,p3,ct\n")
    cases = find_cases(listing, tmp_path / "masks")
    assert [(scan.case, scan.file, scan.modality) for scan in cases.scans] == [
        ("p1", "one.nii.gz", "mr"), ("two", "two_0000.nii", None), ("p3", "gone.nii", "ct"),
    ]  # fmt: skip
    with pytest.raises(VolumeError, match="cannot be opened"):  # when its turn comes
        cases.scans[2].load()
    listing.write_text("image\nimages/one.nii.gz\n")
    assert [scan.case for scan in find_cases(listing, tmp_path / "masks").scans] == ["one"]


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("id,modality\na,mr\n", StudyError, "no column 'image'"),
        ("image,id\na.nii,../../x\n", ConfigError, "id '../../x' is not allowed"),
        ("image,id\na.nii,p\nb.nii,P\n", ConfigError, "would both give"),
        ("image,modalty\na.nii,mr\n", StudyError, "did you mean 'modality'"),
        ("image\n", StudyError, "lists no cases"),
        ("image\nmasks/a.nii\n", ConfigError, "masks would overwrite the scans"),
        ("\0\1\2", StudyError, "lists no cases"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(
    tmp_path: Path, text: str, error: type[Exception], told: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(error, match=told):
        find_cases(tmp_path / "list.csv", tmp_path / "masks")


def test_a_scan_is_no_manifest(tmp_path: Path) -> None:
    nifti(tmp_path / "list.nii")
    (tmp_path / "list.nii").rename(tmp_path / "list.csv")
    with pytest.raises(ConfigError, match="is a scan"):
        find_cases(tmp_path / "list.csv", tmp_path / "masks")


def test_the_hash_of_a_series_is_that_of_its_slices_whatever_their_names_and_order(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", make_slices(VOLUME, ONE))
    for index, file in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "b" / f"{index}.dcm")
    (one,), (other,) = (find_cases(tmp_path / name, tmp_path / "masks").scans for name in ("a", "b"))
    assert one.sha256() == other.sha256()
    first = one.paths[0]
    first.write_bytes(first.read_bytes()[:-2] + b"\1\1")
    assert one.sha256() != other.sha256()
    nifti(tmp_path / "c.nii")
    scan = next(scan for scan in find_cases(tmp_path, tmp_path / "masks", derived=True).scans if not scan.series)
    assert scan.sha256() == hashlib.sha256((tmp_path / "c.nii").read_bytes()).hexdigest()


def test_slices_come_in_the_order_of_the_third_axis(tmp_path: Path) -> None:
    write_slices(tmp_path, make_slices(VOLUME, TWO))
    (scan,) = find_cases(tmp_path, tmp_path / "masks").scans
    loaded = scan.load()
    assert loaded.tag == "CT"
    found = [dcmread(path) for path in loaded.slices]
    for index, one in enumerate(found):
        np.testing.assert_array_equal(one.pixel_array.T, loaded.channels[0].array[:, :, index])
