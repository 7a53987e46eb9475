from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nicom.dicomwrappers import wrapper_from_data
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEG2000Lossless, SecondaryCaptureImageStorage
from scipy.spatial.transform import Rotation

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.dicom import read_series
from dropgen.features.studies.volume import Volume
from tests_support.dicom import make_slices, packed

VOXELS = 10**6


def blob(axes: np.ndarray) -> Volume:
    """A bright box off the centre of a dim volume, whose voxel axes are the columns of `axes` (RAS)."""
    array = np.zeros((7, 6, 5), np.float32)
    array[4:6, 1:3, 3:5] = 1000
    affine = np.eye(4)
    affine[:3, :3] = axes * [0.8, 1.1, 2.5]
    affine[:3, 3] = [-11.5, 20.25, 3]
    return Volume(array, affine)


def centroid(volume: Volume) -> np.ndarray:
    inside = np.argwhere(volume.array > 500)
    return np.asarray((inside @ volume.affine[:3, :3].T + volume.affine[:3, 3]).mean(axis=0))


ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = Rotation.from_euler("xyz", [13, -21, 7], degrees=True).as_matrix()


@pytest.mark.parametrize("tilt", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_a_voxel_is_where_the_scanner_saw_it_in_all_48_orientations(tilt: np.ndarray) -> None:
    for axes in ORIENTATIONS:
        volume = blob(tilt @ axes)
        slices = make_slices(volume)
        found = read_series([packed(one) for one in reversed(slices)], VOXELS).volume
        np.testing.assert_allclose(centroid(found), centroid(volume), atol=1e-4)
        assert np.count_nonzero(found.array > 500) == 8
        codes = nib.aff2axcodes(found.affine)[:2]
        assert codes == nib.aff2axcodes(volume.affine)[:2]
        by_nibabel = wrapper_from_data(next(one for one in slices if _at(one, found))).affine
        np.testing.assert_allclose(
            (np.diag([-1, -1, 1, 1]) @ by_nibabel)[:3, [1, 0, 3]], found.affine[:3, [0, 1, 3]], atol=1e-4
        )


def _at(one: Dataset, volume: Volume) -> bool:
    return bool(np.allclose(np.array(one.ImagePositionPatient, float) * [-1, -1, 1], volume.affine[:3, 3], atol=1e-4))


def test_values_are_rescaled_and_the_modality_is_the_tags() -> None:
    volume = blob(np.eye(3))
    slices = make_slices(volume)
    for one in slices:
        one.RescaleSlope, one.RescaleIntercept = "2", "-1024"
    series = read_series([packed(one) for one in slices], VOXELS)
    assert series.modality == "CT"
    assert sorted(np.unique(series.volume.array)) == [-1024, 976]
    assert series.volume.array.dtype == np.float32


def change(index: int, **fields: object) -> Callable[[list[Dataset]], None]:
    def apply(slices: list[Dataset]) -> None:
        for name, value in fields.items():
            setattr(slices[index], name, value)

    return apply


def moved(index: int, by: tuple[float, float, float]) -> Callable[[list[Dataset]], None]:
    def apply(slices: list[Dataset]) -> None:
        old = slices[index].ImagePositionPatient
        slices[index].ImagePositionPatient = [float(a) + b for a, b in zip(old, by, strict=True)]

    return apply


def sheared(slices: list[Dataset]) -> None:
    for index in range(len(slices)):
        moved(index, (0, 0.3 * index, 0))(slices)


def compressed(slices: list[Dataset]) -> None:
    slices[3].file_meta.TransferSyntaxUID = JPEG2000Lossless
    slices[3].PixelData = encapsulate([slices[3].PixelData])


REFUSED: dict[str, tuple[Callable[[list[Dataset]], object], str]] = {
    "missing": (lambda slices: slices.pop(2), "1 missing between slices 2 and 4"),
    "uneven": (moved(2, (0, 0, 0.7)), "slices 2 and 3 are 3.2 mm apart, others 2.5 mm"),
    "twice": (lambda slices: slices.append(make_slices(blob(np.eye(3)))[1]), "slices 2 and 2 are at the same place"),
    "tilted": (sheared, "tilted gantry: from slice 1 to 2 on"),
    "beside": (moved(2, (0.4, 0, 0)), "slice 3 lies beside"),
    "localizer by type": (change(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), r"slice 2\) is a localizer"),
    "localizer by plane": (change(1, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "slice 2 is not parallel"),
    "another series": (change(3, SeriesInstanceUID="1.2.3"), "slice 4 is of another"),
    "no series": (lambda slices: slices[3].__delattr__("SeriesInstanceUID"), "file 4 of the series is damaged"),
    "another spacing": (change(3, PixelSpacing=[1.1, 0.9]), "slice 4 has another size or pixel spacing"),
    "no spacing": (change(3, PixelSpacing=[0, 0.8]), "slice 4.*impossible"),
    "no direction": (change(3, ImageOrientationPatient=[0] * 6), "slice 4.*impossible"),
    "short of voxels": (change(3, Rows=60000), "slice 4.*which no scanner makes"),
    "forged size": (change(3, Rows=4000, Columns=4000), "slice 4.*bytes where its header promises 32000000"),
    "negative frames": (change(3, NumberOfFrames="-3"), "slice 4.*several frames"),
    "many frames": (change(3, NumberOfFrames="2147483647"), "slice 4.*several frames"),
    "colours": (change(3, SamplesPerPixel=3), "slice 4.*colours"),
    "odd bits": (change(3, BitsAllocated=12), "slice 4.*12 bits"),
    "infinite slope": (change(3, RescaleSlope="1e400"), "slice 4.*scales"),
    "a photograph": (change(3, SOPClassUID=SecondaryCaptureImageStorage), "slice 4.*no plain CT or MR"),
    "compressed": (compressed, "slice 4.*compressed"),
    "alone": (lambda slices: slices.__delitem__(slice(1, None)), "1 DICOM slices"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_regular_grid_is_refused_with_the_slice_named_and_no_name_of_a_patient(case: str) -> None:
    spoil, told = REFUSED[case]
    slices = make_slices(blob(np.eye(3)))
    spoil(slices)
    with pytest.raises(VolumeError, match=told) as caught:
        read_series([packed(one) for one in slices], VOXELS)
    assert "Meier" not in str(caught.value)


def test_more_voxels_than_are_taken_are_refused_before_one_is_decoded() -> None:
    with pytest.raises(TooLargeError, match="210 voxels"):
        read_series([packed(one) for one in make_slices(blob(np.eye(3)))], 209)


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bits_give_a_typed_error_or_a_volume_of_the_size_that_was_sent(data: st.DataObject) -> None:
    files = [bytearray(packed(one).getvalue()) for one in make_slices(blob(np.eye(3)))]
    for _ in range(data.draw(st.integers(1, 4))):
        file = files[data.draw(st.integers(0, len(files) - 1))]
        file[data.draw(st.integers(128, len(file) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        series = read_series([io.BytesIO(file) for file in files], VOXELS)
    except VolumeError:
        return
    assert series.volume.array.size == 210


def test_a_file_that_is_none_is_refused() -> None:
    for body in (b"", b"DICM", bytes(2000), b"\0" * 128 + b"DICM" + b"\xff" * 200):
        with pytest.raises(VolumeError):
            read_series([io.BytesIO(body), io.BytesIO(body)], VOXELS)
    assert dcmread(packed(make_slices(blob(np.eye(3)))[0])).SOPClassUID == CTImageStorage
