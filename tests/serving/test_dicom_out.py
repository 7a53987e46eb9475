"""DICOM-SEG files, read back with pydicom's bare attributes and with highdicom, against where the blob really is."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from typing import Any

import highdicom
import numpy as np
import pytest
from highdicom.color import CIELabColor
from matplotlib.colors import to_rgb
from pydicom import Dataset, dcmread
from scipy.spatial.transform import Rotation

from dropgen.errors import VolumeError
from dropgen.features.studies.dicom import read_series
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.overlays import colour
from dropgen.serving.dicom_out import SegType, encode
from dropgen.serving.models import Model
from tests_support.dicom import FRAME, SERIES, STUDY, make_slices, packed

LABEL_MAP, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.66.4"
SPACING = np.array([0.8, 1.1, 2.5])
CODE = {"scheme": "SCT", "value": "87878005", "meaning": "Left ventricle", "abnormal": False}
TUMOUR = {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm", "abnormal": True}
MODEL = Model(
    uri="models:/heart@champion",
    digest="0123456789abcdef",
    classes=("background", "ventricle", "tumour", "lead of a pacemaker", "dura māter"),
    name="heart",
    version="3",
    codes={"ventricle": CODE, "tumour": TUMOUR},
)
AXES = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = Rotation.from_euler("xyz", [13, -21, 7], degrees=True).as_matrix()


def blob(axes: np.ndarray) -> Volume:
    """A bright box off the centre of a dim volume, whose voxel axes are the columns of `axes` (RAS)."""
    array = np.zeros((9, 6, 7), np.float32)
    array[5:8, 1:3, 4:6] = 1000
    affine = np.eye(4)
    affine[:3, :3] = axes * SPACING
    affine[:3, 3] = [-11.5, 20.25, 3]
    return Volume(array, affine)


def truth(volume: Volume) -> np.ndarray:
    """Centre of the box in DICOM's patient coordinates, mm; independent of how anything is read."""
    centre = volume.affine @ [6, 1.5, 4.5, 1]
    return np.asarray(centre[:3] * [-1, -1, 1])


def segmented(slices: list[Dataset], kind: SegType, value: int = 1) -> bytes:
    """What becomes of a series: read, segmented by its brightness, written."""
    files = [packed(one) for one in slices]
    series = read_series(files, 10**6)
    for file in files:
        file.seek(0)
    mask = np.where(series.volume.array > 500, value, 0).astype(np.uint8)
    return encode(mask, [files[index] for index in series.order], MODEL, kind).content


def by_pydicom(content: bytes, number: int) -> np.ndarray:
    """Centroid in mm of a segment, from the frames' own positions and the standard's formula (C.7.6.2.1.1)."""
    data = dcmread(io.BytesIO(content))
    shared = data.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame, groups in zip(
        data.pixel_array.reshape(-1, data.Rows, data.Columns), data.PerFrameFunctionalGroupsSequence, strict=True
    ):
        if data.SegmentationType == "LABELMAP":
            inside = np.argwhere(frame == number)
        elif groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            inside = np.argwhere(frame == 1)
        else:
            continue
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        points += [position + y * between_rows * column + x * between_columns * row for y, x in inside]
    return np.asarray(np.mean(points, axis=0))


def by_highdicom(content: bytes, number: int) -> np.ndarray:
    volume = highdicom.seg.segread(io.BytesIO(content)).get_volume(
        segment_numbers=[number], combine_segments=True, relabel=True, allow_missing_positions=True
    )
    inside = np.argwhere(volume.array == 1)
    return np.asarray((inside @ volume.affine[:3, :3].T + volume.affine[:3, 3]).mean(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labelmap", "binary"])
@pytest.mark.parametrize("tilt", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_a_segment_is_where_the_scanner_saw_it_in_all_48_orientations(tilt: np.ndarray, kind: SegType) -> None:
    for index, axes in enumerate(AXES):
        volume = blob(tilt @ axes)
        slices = make_slices(volume)
        if index % 2:
            slices.reverse()
        content = segmented(slices, kind)
        for centroid in (by_pydicom(content, 1), by_highdicom(content, 1)):
            np.testing.assert_allclose(centroid, truth(volume), atol=1e-3)


def test_the_order_of_files_changes_nothing() -> None:
    slices = make_slices(blob(OBLIQUE))
    shuffled = [slices[index] for index in (3, 0, 6, 2, 5, 1, 4)]
    one, other = (dcmread(io.BytesIO(segmented(files, "labelmap"))) for files in (slices, shuffled))
    assert one.PixelData == other.PixelData
    assert one.PerFrameFunctionalGroupsSequence == other.PerFrameFunctionalGroupsSequence


def test_regions_that_overlap_are_refused_rather_than_cut() -> None:
    slices = make_slices(blob(OBLIQUE))
    model = replace(MODEL, regions=((1, 2), (2,), (3,), (4,)))
    with pytest.raises(VolumeError, match="heart finds regions that overlap"):
        encode(np.zeros((9, 6, 7), np.uint8), slices, model, "binary")


def test_a_half_voxel_off_would_be_seen() -> None:
    volume = blob(OBLIQUE)
    slices = make_slices(volume)
    content = segmented(slices, "labelmap")
    data = dcmread(io.BytesIO(content))
    for groups in data.PerFrameFunctionalGroupsSequence:
        place = groups.PlanePositionSequence[0]
        place.ImagePositionPatient = [float(value) + 0.25 for value in place.ImagePositionPatient]
    stream = io.BytesIO()
    data.save_as(stream)
    assert np.linalg.norm(by_pydicom(stream.getvalue(), 1) - truth(volume)) == pytest.approx(0.25 * 3**0.5, abs=1e-3)


@pytest.mark.parametrize(("kind", "storage"), [("labelmap", LABEL_MAP), ("binary", SEGMENTATION)])
def test_it_says_who_made_it_what_it_shows_and_what_it_is_for(kind: SegType, storage: str) -> None:
    data = dcmread(io.BytesIO(segmented(make_slices(blob(np.eye(3))), kind)))
    assert (data.SOPClassUID, data.Modality, data.SegmentationType) == (storage, "SEG", kind.upper())
    assert "research use only" in data.SeriesDescription
    assert "research use only" in data.ContentDescription
    segments = {item.SegmentLabel: item for item in data.SegmentSequence if item.SegmentNumber > 0}
    assert list(segments) == list(MODEL.classes[1:])  # tumour and lead are empty, and described
    for item in segments.values():
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("heart", "3")
        assert item.SegmentAlgorithmType == "AUTOMATIC"
    shown = [CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb() for item in segments.values()]
    for number, rgb in enumerate(shown, 1):
        np.testing.assert_allclose(rgb, np.array(to_rgb(colour(number))) * 255, atol=2)  # as in the previews
    assert told(segments["ventricle"]) == ("123037004", "SCT", "87878005", "Left ventricle")
    assert told(segments["tumour"]) == ("49755003", "SCT", "108369006", "Neoplasm")
    lead = segments["lead of a pacemaker"].SegmentedPropertyTypeCodeSequence[0]
    assert (lead.CodingSchemeDesignator, lead.LongCodeValue) == ("99DROPGEN", "lead of a pacemaker")


def told(item: Dataset) -> tuple[Any, ...]:
    category, kind = item.SegmentedPropertyCategoryCodeSequence[0], item.SegmentedPropertyTypeCodeSequence[0]
    return category.CodeValue, kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning


def test_it_is_filed_under_the_patient_and_study_of_its_series_as_a_series_of_its_own() -> None:
    slices = make_slices(blob(np.eye(3)))
    for one in slices:
        one.StudyDate, one.PatientSex = "20260102", "F"
        one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Ada"
    data = dcmread(io.BytesIO(segmented(slices, "labelmap")))
    assert (data.PatientName, data.PatientID, data.PatientSex) == ("Müller^Ada", "P-17", "F")
    assert (data.StudyInstanceUID, data.StudyDate, data.AccessionNumber) == (STUDY, "20260102", "A-4")
    assert data.FrameOfReferenceUID == FRAME
    assert MODEL.classes[-1] in [item.SegmentLabel for item in data.SegmentSequence]  # letters that Latin 1 lacks
    assert data.SeriesInstanceUID != SERIES
    assert {item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == {
        one.SOPInstanceUID for one in slices
    }
    again = dcmread(io.BytesIO(segmented(slices, "labelmap")))
    assert again.SOPInstanceUID != data.SOPInstanceUID


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_a_mask_without_any_segment_is_a_file_that_shows_every_slice_empty(kind: SegType) -> None:
    slices = make_slices(blob(np.eye(3)))
    content = segmented(slices, kind, value=0)
    data = dcmread(io.BytesIO(content))
    assert not data.pixel_array.any()
    positions = {
        tuple(groups.PlanePositionSequence[0].ImagePositionPatient) for groups in data.PerFrameFunctionalGroupsSequence
    }
    assert len(positions) == len(slices)
    assert [item.SegmentLabel for item in data.SegmentSequence if item.SegmentNumber > 0] == list(MODEL.classes[1:])
    assert highdicom.seg.segread(io.BytesIO(content)).number_of_segments >= 3


def test_slice_thickness_is_the_scanners_and_the_step_is_what_is_measured() -> None:
    slices = make_slices(blob(np.eye(3)))
    for one in slices:
        one.SliceThickness, one.SpacingBetweenSlices = "2.0", "9.9"
    data = dcmread(io.BytesIO(segmented(slices, "labelmap")))
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.0, 2.5)


@pytest.mark.parametrize("sex", ["", "M", "?"])
def test_a_tag_that_no_file_may_repeat_is_one_sentence_without_its_value(sex: str) -> None:
    slices = make_slices(blob(np.eye(3)))
    for one in slices:
        one.PatientSex = sex
    if sex != "?":
        assert dcmread(io.BytesIO(segmented(slices, "labelmap"))).PatientSex == sex
        return
    with pytest.raises(VolumeError, match="cannot be repeated in a DICOM-SEG") as caught:
        segmented(slices, "labelmap")
    assert "Meier" not in str(caught.value)


def test_a_series_without_a_frame_of_reference_is_refused() -> None:
    slices = make_slices(blob(np.eye(3)))
    for one in slices:
        del one.FrameOfReferenceUID
    with pytest.raises(VolumeError, match="no frame of reference"):
        segmented(slices, "labelmap")
