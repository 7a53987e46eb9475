"""A mask as DICOM-SEG: on the very slices of its series, with coded segments, filed under the same patient and study.

Standard: DICOM PS3.3 A.51; label maps are of its Supplement 243.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import highdicom
import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.valuerep import DS

from dropgen import __version__
from dropgen.errors import VolumeError
from dropgen.features.studies.codes import Code
from dropgen.features.studies.dicom import DECODE_ERRORS
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.evaluation.overlays import colour
from dropgen.serving.models import Model

SegType = Literal["labelmap", "binary"]
OWN_SCHEME = "99DROPGEN"  # of classes without a code: a class's name is its code
STRUCTURE = CodedConcept("123037004", "SCT", "Anatomical Structure")
ABNORMAL = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
SERIES_OFFSET = 9000  # from the number of the source series to ours
LONG = 64  # characters of a DICOM long string
# Of the image, where it lacks them: type 2 in the standard, so that empty says "not known".
UNKNOWN = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """A DICOM-SEG file.

    Attributes:
        content: Its bytes.
        uid: Its SOPInstanceUID, new with every file.
    """

    content: bytes
    uid: str


def encode(mask: np.ndarray, slices: Sequence[Path | BinaryIO], model: Model, kind: SegType) -> Encoded:
    """Writes a mask as DICOM-SEG.

    Positions, orientation and pixel spacing are those of the slices themselves. Slices without any segment are left
    out of the file, unless all are.

    Args:
        mask: uint8 [X, Y, Z]: columns, rows, slices.
        slices: The image's files in the order of the third axis; their pixels are not read.
        model: Names the segments and the algorithm.
        kind: One label map, or one binary frame per segment and slice, for readers that know no label maps.

    Raises:
        VolumeError: The slices lack what a DICOM-SEG must repeat, or the model's classes overlap.
    """
    if model.regions:
        raise VolumeError(
            f"{model.name} finds regions that overlap, and a DICOM-SEG of it would show only what no other region "
            "covers; leave out --dicom-seg or accept NIfTI"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's remarks on names of patients
            headers = [_header(one) for one in slices]
            made = _segmentation(np.ascontiguousarray(mask.transpose(2, 1, 0)), headers, model, kind)
            stream = io.BytesIO()
            made.save_as(stream)
    except DECODE_ERRORS as error:
        raise VolumeError(
            f"its slices cannot be repeated in a DICOM-SEG ({type(error).__name__}); export them again, or leave out "
            "--dicom-seg"
        ) from None
    return Encoded(stream.getvalue(), str(made.SOPInstanceUID))


def _header(one: Path | BinaryIO) -> Dataset:
    header = dcmread(one, stop_before_pixels=True)
    if not header.get("FrameOfReferenceUID"):
        raise VolumeError(
            "its slices name no frame of reference, so no DICOM-SEG can say where it lies; export it again"
        )
    for name in UNKNOWN:
        if name not in header:
            setattr(header, name, "")
    return header


def _segmentation(frames: np.ndarray, headers: Sequence[Dataset], model: Model, kind: SegType) -> Segmentation:
    first = headers[0]
    positions = np.array([header.ImagePositionPatient for header in headers], np.float64)
    # What the headers say of it may be missing or of another kind: thickness with a gap, or 0.
    step = float(np.linalg.norm(positions[-1] - positions[0])) / (len(headers) - 1)
    first.SpacingBetweenSlices = DS(step, auto_format=True)
    first.SliceThickness = first.get("SliceThickness") or first.SpacingBetweenSlices
    algorithm = AlgorithmIdentificationSequence(
        name=_long(model.name), version=_long(model.version), family=codes.cid7162.ArtificialIntelligence
    )
    return Segmentation(
        source_images=headers,
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues[kind.upper()],
        segment_descriptions=[
            _describe(number, name, model.codes, algorithm) for number, name in enumerate(model.classes[1:], 1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=int(first.get("SeriesNumber") or 0) + SERIES_OFFSET,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="DropGen",
        manufacturer_model_name=_long(model.name),
        software_versions=__version__,
        device_serial_number=model.digest,
        content_label="SEGMENTATION",
        content_description=_long(f"{RESEARCH_ONLY}; {model.name} {model.version}"),
        content_creator_name="",
        specific_character_set="ISO_IR 192",  # the source's may lack letters of the classes' names
        series_description=_long(f"DropGen {RESEARCH_ONLY}; {model.name}"),
        omit_empty_frames=bool(frames.any()),
    )


def _describe(
    number: int, name: str, coded: Mapping[str, Mapping[str, Any]], algorithm: AlgorithmIdentificationSequence
) -> SegmentDescription:
    code = Code.model_validate(coded[name]) if name in coded else None
    return SegmentDescription(
        segment_number=number,
        segment_label=_long(name),
        segmented_property_category=ABNORMAL if code is not None and code.abnormal else STRUCTURE,
        segmented_property_type=(
            CodedConcept(_long(name), OWN_SCHEME, _long(name))
            if code is None
            else CodedConcept(code.value, code.scheme, code.meaning)
        ),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_string(colour(number)),
    )


def _long(text: str) -> str:
    """Text as a DICOM long string, in which a backslash would end the value."""
    return text.replace("\\", "/")[:LONG].strip() or "-"
