"""What there is to segment in a folder of NIfTI files, a tree of DICOM files or a manifest, decided from content.

Nothing is passed over in silence: what is not segmented is listed with its reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dropgen import memory
from dropgen.errors import ConfigError, VolumeError
from dropgen.features.studies.dicom import read_series
from dropgen.features.studies.dicom_tree import Listed, is_dicom, list_series
from dropgen.features.studies.sources import channel_names, image_columns, read_images
from dropgen.features.studies.study import LEGAL_ID
from dropgen.features.studies.volume import Volume, is_nifti, read_volume
from dropgen.platform.evaluation.memory import READING_BYTES
from dropgen.serving.ledger import Outcome

SUFFIXES = (".nii.gz", ".nii")
CHANNEL = "_0000"  # nnU-Net's mark of an image's only channel; its masks have none
NAMED = 3  # of many files that are left out for one reason


@dataclass(frozen=True)
class Loaded:
    """A scan in memory.

    Attributes:
        channels: The image, one volume per channel.
        tag: Modality by the DICOM tag; None for NIfTI, which has none.
        slices: The DICOM files in the order of the third axis; none for NIfTI.
    """

    channels: tuple[Volume, ...]
    tag: str | None = None
    slices: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Scan:
    """One image to segment.

    Attributes:
        case: Name of its mask without the extension.
        file: What people call it: its path below the input.
        paths: The NIfTI files, one per channel, or the files of the series.
        modality: As the manifest says.
        series: Whether it is a DICOM series.
        about: What the series' headers say, for people.
        channels: Names of the channels where a manifest gives them; none for one file, and before `with_channels` has
            told those of a folder.
    """

    case: str
    file: str
    paths: tuple[Path, ...]
    modality: str | None = None
    series: bool = False
    about: str = ""
    channels: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Of the file; of several channels, of their hashes in order; of a series, of the sorted hashes of its files.

        So names do not matter, nor the order in which the files of a series were found.

        Raises:
            VolumeError: A file cannot be read.
        """
        hashes = []
        for path in self.paths:
            try:
                with path.open("rb") as file:
                    hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
            except OSError as error:
                raise VolumeError(f"{path} cannot be read ({error.strerror}); check the path") from None
        if len(hashes) == 1 and not self.series:
            return hashes[0]
        return hashlib.sha256("".join(sorted(hashes) if self.series else hashes).encode()).hexdigest()

    def load(self) -> Loaded:
        """Reads it.

        Raises:
            VolumeError: It is damaged, or the series makes no regular grid; names the slice.
            TooLargeError: Reading the series would not fit in memory.
        """
        if not self.series:
            return Loaded(tuple(map(read_volume, self.paths)))
        series = read_series(self.paths, memory.available() // READING_BYTES)
        return Loaded((series.volume,), series.modality, tuple(self.paths[index] for index in series.order))


@dataclass(frozen=True)
class Cases:
    """What an input holds.

    Attributes:
        scans: To segment.
        others: What is not, with the reason: left out because of what it is, or failed because it is broken.
    """

    scans: tuple[Scan, ...]
    others: tuple[Outcome, ...] = ()


def find_cases(source: Path, target: Path, derived: bool = False) -> Cases:
    """Lists the cases of an input.

    Args:
        source: Folder with NIfTI files directly in it, with DICOM series anywhere below it, or a manifest CSV with the
            column `image`, or `image_<channel>` for each channel, and, as wanted, `id` and `modality`.
        target: Where masks go; what lies there is no input.
        derived: Whether derived DICOM series are segmented too.

    Raises:
        ConfigError: There is nothing to segment, masks would overwrite scans, or two would have one name.
        StudyError: The manifest is unreadable or lacks its column.
    """
    if source.is_dir():
        found = _of_folder(source, target, derived)
    elif is_nifti(source) or is_dicom(source):
        raise ConfigError(f"{source} is a scan; name the folder that it lies in, or a CSV that lists it")
    elif source.is_file():
        found = Cases(tuple(_of_manifest(source)))
    else:
        raise ConfigError(f"{source} is not a folder and no manifest; name a folder of NIfTI or DICOM files, or a CSV")
    if not found.scans:
        told = "".join(f"; {one.file}: {one.reason}" for one in found.others[:NAMED])
        raise ConfigError(f"{source} holds no .nii or .nii.gz file and no DICOM series to segment{told}")
    require_distinct(found.scans, source)
    if any(path.parent.resolve() == target.resolve() for scan in found.scans for path in scan.paths):
        raise ConfigError(f"masks would overwrite the scans in {target}; name another output folder")
    return found


def _of_manifest(path: Path) -> Iterable[Scan]:
    for row in read_images(path):
        if not LEGAL_ID.fullmatch(row["id"]):
            raise ConfigError(
                f"{path}: id '{row['id']}' is not allowed; use 1 to 64 letters, digits, '.', '_' or '-', the first a "
                "letter or digit"
            )
        images = tuple(Path(row[column]) for column in image_columns(row))
        yield Scan(row["id"], images[0].name, images, row["modality"] or None, channels=channel_names(row))


def _of_folder(source: Path, target: Path, derived: bool) -> Cases:
    scans: list[Scan] = []
    dicom: list[Path] = []
    deeper: list[Path] = []
    unknown: list[Path] = []
    for path in _files(source, target):
        if is_dicom(path):
            dicom.append(path)
        elif path.name.lower().endswith(SUFFIXES) or is_nifti(path):
            # A name that promises NIfTI is a case, which fails with its cause where the content is none.
            if path.parent == source:
                scans.append(Scan(_mask_name(path), path.name, (path,)))
            else:
                deeper.append(path)
        else:
            unknown.append(path)
    others = []
    for one in list_series(dicom, derived):
        if one.reason:
            others.append(_outcome(one, source))
        else:
            scans.append(Scan(one.uid, _place(one, source), one.files, series=True, about=_about(one)))
    for paths, reason in (
        (deeper, "NIfTI files are taken from the folder itself alone; name theirs"),
        (unknown, "neither NIfTI nor DICOM"),
    ):
        if paths:
            others.append(Outcome("", _some(paths, source), "left out", reason))
    return Cases(tuple(scans), tuple(others))


def _files(source: Path, target: Path) -> Iterable[Path]:
    """All files below a folder in the order of names, but hidden ones and those of an earlier run."""
    for folder, inner, names in os.walk(source):
        here = Path(folder)
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and (here / name).resolve() != target.resolve()
        )
        yield from (here / name for name in sorted(names) if not name.startswith(".") and (here / name).is_file())


def _mask_name(path: Path) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)].removesuffix(CHANNEL)


def _outcome(one: Listed, source: Path) -> Outcome:
    about = f"{_about(one)}: " if one.uid else ""
    return Outcome(one.uid, _place(one, source), "failed" if one.broken else "left out", f"{about}{one.reason}")


def _about(one: Listed) -> str:
    number = f"series {one.number}" if one.number else "series without a number"
    return f"{number}, {one.modality or 'no modality'}, {_count(len(one.files), 'file')}"


def _place(one: Listed, source: Path) -> str:
    """The folder of a series, or the file of which there is only one."""
    path = one.files[0] if len(one.files) == 1 else Path(os.path.commonpath([file.parent for file in one.files]))
    return path.relative_to(source).as_posix()


def _some(paths: Sequence[Path], source: Path) -> str:
    named = ", ".join(path.relative_to(source).as_posix() for path in paths[:NAMED])
    return f"{named} and {len(paths) - NAMED} more" if len(paths) > NAMED else named


def require_distinct(scans: Sequence[Scan], source: Path) -> None:
    """Refuses scans whose masks would have one name.

    Raises:
        ConfigError: Two would.
    """
    taken: dict[str, Scan] = {}  # names that differ in case only are one file on some disks
    for scan in scans:
        if other := taken.get(scan.case.casefold()):
            raise ConfigError(
                f"{other.file} and {scan.file} in {source} would both give {scan.case}{SUFFIXES[0]}; rename one of them"
            )
        taken[scan.case.casefold()] = scan


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
