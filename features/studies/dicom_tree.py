"""The series of a folder of DICOM files: which files belong together, which series can be segmented, why others not.

Names and folders say nothing: a series is what carries one SeriesInstanceUID.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID

from dropgen.features.studies.dicom import CLASSES, DECODE_ERRORS

MAGIC, MAGIC_AT = b"DICM", 128
LEGAL_UID = re.compile(r"[0-9][0-9.]{0,63}")  # it becomes a file name
TAGS = ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType"]


@dataclass(frozen=True)
class Listed:
    """A series as its headers describe it.

    Attributes:
        uid: Its SeriesInstanceUID; empty for a file that says none.
        number: As the scanner counted it, or empty.
        modality: By the tag.
        files: In the order of names.
        reason: Why it cannot be segmented, or is not meant to be; empty where it can.
        broken: Whether that is a fault of the files, and not their kind.
    """

    uid: str
    number: str
    modality: str
    files: tuple[Path, ...]
    reason: str = ""
    broken: bool = False


@dataclass(frozen=True)
class _Header:
    file: Path
    number: str
    modality: str
    kind: str
    image_type: tuple[str, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file's content says that it is DICOM; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def list_series(files: Iterable[Path], derived: bool = False) -> list[Listed]:
    """Sorts DICOM files into series, by their headers alone.

    Args:
        files: DICOM files, from anywhere.
        derived: Whether series that were computed from others may be segmented too.

    Returns:
        Every file is in exactly one: first what can be segmented, in the order of first files.
    """
    groups: dict[str, list[_Header]] = defaultdict(list)
    listed = []
    for file in sorted(files):
        try:
            uid, header = _header(file)
        except DECODE_ERRORS as error:
            listed.append(_broken(file, f"its header is damaged ({type(error).__name__}); export it again"))
            continue
        if not header.kind:
            listed.append(_broken(file, "its header is damaged (it names no SOP class); export it again"))
        elif header.kind in CLASSES and not LEGAL_UID.fullmatch(uid):
            listed.append(_broken(file, "it names no series by a legal SeriesInstanceUID; export it again"))
        else:
            groups[uid].append(header)
    listed += [_describe(uid, headers, derived) for uid, headers in groups.items()]
    return sorted(listed, key=lambda one: (bool(one.reason), one.files[0]))


def _header(file: Path) -> tuple[str, _Header]:
    data = dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
    image_type = data.get("ImageType") or ()
    parts = (image_type,) if isinstance(image_type, str) else tuple(str(part) for part in image_type)
    kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID", ""))
    number, modality = str(data.get("SeriesNumber") or ""), str(data.get("Modality") or "")
    return str(data.get("SeriesInstanceUID") or ""), _Header(file, number, modality, kind, parts)


def _broken(file: Path, reason: str) -> Listed:
    return Listed("", "", "", (file,), reason, broken=True)


def _describe(uid: str, headers: list[_Header], derived: bool) -> Listed:
    first = headers[0]
    return Listed(uid, first.number, first.modality, tuple(one.file for one in headers), _reason(headers, derived))


def _reason(headers: list[_Header], derived: bool) -> str:
    """What all of its files are that no series to segment is; what some are makes reading it fail, with the slice."""
    if not any(one.kind in CLASSES for one in headers):
        kinds = sorted({UID(one.kind).name for one in headers})
        return f"it is {' and '.join(kinds)}, no plain CT or MR image"
    if all("LOCALIZER" in one.image_type for one in headers):
        return "it is a localizer"
    if not derived and all(one.image_type[:1] == ("DERIVED",) for one in headers):
        return f"it is derived from other images ({'/'.join(headers[0].image_type)}); --derived takes such series too"
    return ""
