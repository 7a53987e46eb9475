"""DICOM series for tests, written from volumes; the patient is called Meier^Anna, who must not get anywhere."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from dropgen.features.studies.volume import Volume

SERIES, STUDY = UID("1.2.826.0.1.3680043.8.498.1"), UID("1.2.826.0.1.3680043.8.498.2")


def make_slices(volume: Volume) -> list[Dataset]:
    """One CT image for each index along the third axis; values must be whole numbers of 16 bits."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    slices = []
    for index in range(volume.array.shape[2]):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, UID(f"{SERIES}.{index + 1}")
        one.SeriesInstanceUID, one.StudyInstanceUID = SERIES, STUDY
        one.Modality, one.InstanceNumber, one.PatientName = "CT", index + 1, "Meier^Anna"
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.Rows, one.Columns = volume.array.shape[1], volume.array.shape[0]
        one.PixelSpacing = [float(lengths[1]), float(lengths[0])]
        one.ImageOrientationPatient = [round(float(value), 8) for value in (lps[:3, :2] / lengths[:2]).T.ravel()]
        one.ImagePositionPatient = [round(float(value), 6) for value in lps[:3, 3] + index * lps[:3, 2]]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = volume.array[:, :, index].T.astype("<i2").tobytes()
        slices.append(one)
    return slices


def packed(one: Dataset) -> io.BytesIO:
    """A slice as a file."""
    stream = io.BytesIO()
    dcmwrite(stream, one, enforce_file_format=True)
    stream.seek(0)
    return stream


def zipped(volume: Volume, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A series as a zip."""
    return members({f"Meier^Anna/{index}.dcm": packed(one).getvalue() for index, one in
                    enumerate(make_slices(volume))}, method)  # fmt: skip


def members(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of files by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
