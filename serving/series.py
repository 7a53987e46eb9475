"""A zip of one DICOM series, unpacked under caps.

Sizes are counted and never believed (Orthanc CVE-2026-5439: forged sizes), names are never used as paths, and a member
is neither encrypted nor packed by a method of which the growth is not known.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dropgen.errors import TooLargeError, VolumeError

ZIP_MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 8192  # no axis has more voxels than 4096; as many other files may lie beside the slices
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
BESIDE = ("DICOMDIR", "VERSION", "__MACOSX")  # what programs and systems add to an export


def unzip(path: Path, max_bytes: int, name: str) -> list[BinaryIO]:
    """The slices in a zip, in memory.

    Args:
        path: The zip.
        max_bytes: All members may have together, unpacked.
        name: What error messages call it.

    Raises:
        VolumeError: Damaged, encrypted, or packed in another way.
        TooLargeError: Too many members or bytes.
    """
    files: list[BinaryIO] = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _is_slice(member.filename)]
            if len(members) > MAX_MEMBERS:
                raise TooLargeError(f"{name} has {len(members)} files, more than {MAX_MEMBERS}; send one series")
            for member in members:
                if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
                    raise VolumeError(f"{name} is encrypted or packed in an unusual way; make a plain zip of it")
                with archive.open(member) as stream:
                    content = stream.read(max_bytes + 1)
                max_bytes -= len(content)
                if len(content) < member.file_size and max_bytes >= 0:
                    raise VolumeError(f"{name} is a damaged zip, of which a part is too short; send it again")
                if max_bytes < 0:
                    raise TooLargeError(f"{name} unfolds to more than this server takes; send one series")
                files.append(io.BytesIO(content))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise VolumeError(f"{name} is a damaged or truncated zip ({type(error).__name__}); send it again") from None
    return files


def _is_slice(member: str) -> bool:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    return not any(part in BESIDE or (part.startswith(".") and part != "..") for part in parts)
