"""DICOM series for tests, written from volumes; the patient is called Meier^Anna, who must not get anywhere."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dropgen.features.studies.volume import Volume

SERIES, STUDY = UID("1.2.826.0.1.3680043.8.498.1"), UID("1.2.826.0.1.3680043.8.498.2")
FRAME = UID("1.2.826.0.1.3680043.8.498.3")


def make_slices(volume: Volume, series: UID = SERIES, modality: str = "CT") -> list[Dataset]:
    """One CT or MR image for each index along the third axis; values must be whole numbers of 16 bits."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    slices = []
    for index in range(volume.array.shape[2]):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        one.SOPInstanceUID = UID(f"{series}.{index + 1}")
        one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID = series, STUDY, FRAME
        one.Modality, one.InstanceNumber, one.SeriesNumber = modality, index + 1, int(series[-1])
        one.PatientName, one.PatientID, one.AccessionNumber = "Meier^Anna", "P-17", "A-4"
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


def write_slices(folder: Path, slices: Iterable[Dataset]) -> None:
    """Writes slices into a folder, under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in slices:
        name = hashlib.md5(str(one.SOPInstanceUID).encode()).hexdigest()
        (folder / name).write_bytes(packed(one).getvalue())
