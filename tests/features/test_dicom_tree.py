from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage, SegmentationStorage

from dropgen.features.studies.dicom_tree import Listed, is_dicom, list_series
from dropgen.features.studies.volume import Volume
from tests_support.dicom import make_slices, write_slices

VOLUME = Volume(np.zeros((4, 3, 3), np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))


def series(number: int, **changes: object) -> list[Dataset]:
    slices = make_slices(VOLUME, UID(f"1.2.3.{number}"))
    for one in slices:
        for name, value in changes.items():
            setattr(one, name, value)
    return slices


def listed(folder: Path, derived: bool = False) -> dict[str, Listed]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = list_series(files, derived)
    assert sorted(path for one in found for path in one.files) == files, "every file is in exactly one"
    return {one.uid: one for one in found}


def test_series_are_what_carries_one_uid_wherever_the_files_lie(tmp_path: Path) -> None:
    one, other = series(1), series(2)
    write_slices(tmp_path / "a", [one[0], other[1], one[2]])
    write_slices(tmp_path / "b" / "deep" / "er", [other[0], one[1], other[2]])
    found = listed(tmp_path)
    assert {uid: (len(entry.files), entry.reason) for uid, entry in found.items()} == {
        "1.2.3.1": (3, ""), "1.2.3.2": (3, ""),
    }  # fmt: skip
    assert (found["1.2.3.1"].number, found["1.2.3.1"].modality) == ("1", "CT")


def test_what_is_no_series_to_segment_is_listed_with_its_kind(tmp_path: Path) -> None:
    kinds = {
        1: ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "it is a localizer"),
        2: ({"SOPClassUID": SecondaryCaptureImageStorage}, "it is Secondary Capture Image Storage, no plain CT or MR"),
        3: ({"SOPClassUID": SegmentationStorage}, "it is Segmentation Storage, no plain CT or MR image"),
        4: ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "it is derived from other images (DERIVED/SECONDARY/MPR)"),
        5: ({"ImageType": ["DERIVED", "PRIMARY"]}, "it is derived from other images (DERIVED/PRIMARY)"),
        6: ({"ImageType": "ORIGINAL"}, ""),
    }
    for number, (changes, _) in kinds.items():
        write_slices(tmp_path / str(number), series(number, **changes))
    found = listed(tmp_path)
    for number, (_, reason) in kinds.items():
        assert found[f"1.2.3.{number}"].reason.startswith(reason)
        assert bool(found[f"1.2.3.{number}"].reason) == bool(reason)
        assert not found[f"1.2.3.{number}"].broken
    taken = {uid for uid, one in listed(tmp_path, derived=True).items() if not one.reason}
    assert taken == {"1.2.3.4", "1.2.3.5", "1.2.3.6"}


def test_a_localizer_among_slices_leaves_the_series_to_its_reader_which_names_the_slice(tmp_path: Path) -> None:
    mixed = series(1)
    mixed[1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slices(tmp_path, mixed)
    assert listed(tmp_path)["1.2.3.1"].reason == ""


def test_files_that_cannot_be_sorted_are_broken_and_no_path_leaves_the_folder(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", series(1, SeriesInstanceUID="../../x"))
    (tmp_path / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    found = list_series(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    assert [one.broken for one in found] == [True] * 4
    assert all(one.uid == "" for one in found)
    assert {one.reason.partition(" (")[0].partition(";")[0] for one in found} == {
        "it names no series by a legal SeriesInstanceUID", "its header is damaged",
    }  # fmt: skip


def test_dicom_is_known_by_content_and_not_by_name(tmp_path: Path) -> None:
    write_slices(tmp_path, series(1)[:1])
    (file,) = tmp_path.iterdir()
    assert is_dicom(file.rename(tmp_path / "scan.nii.gz"))
    (tmp_path / "fake.dcm").write_bytes(b"DICM and nothing else" * 50)
    assert not is_dicom(tmp_path / "fake.dcm")
    assert not is_dicom(tmp_path / "nowhere")
