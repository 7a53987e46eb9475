"""Where a study's cases are listed: a manifest CSV, or an nnU-Net raw folder with or without one.

Both give rows of plain text, one per case, with the columns of `COLUMNS` and absolute paths. Nothing is
opened here but the manifest itself.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from dropgen.errors import StudyError

Row = dict[str, str]  # "" stands for an empty cell

REQUIRED = ("image", "label", "split")
COLUMNS = (*REQUIRED, "subject", "domain", "modality", "id")
MANIFEST = "manifest.csv"
SPLIT_FOLDERS = {"train": ("imagesTr", "labelsTr"), "val": ("imagesVal", "labelsVal"), "test": ("imagesTs", "labelsTs")}
IMAGE_NAME = re.compile(r"(?P<id>.+?)(?:_(?P<channel>\d{4}))?\.nii(?:\.gz)?")


def read_rows(source: Path) -> list[Row]:
    """Lists the cases of a manifest CSV or of an nnU-Net raw folder.

    A `manifest.csv` in the folder wins: with a column `image` it is the whole list, without one it sets
    subject, domain, modality and split of the cases that it names by `id`.

    Raises:
        StudyError: The source is missing, empty, or lacks a column; channels beyond the first or labels
            without image are listed all at once.
    """
    if source.is_file():
        return _manifest_cases(source, _read_csv(source))
    if not source.is_dir():
        raise StudyError(f"{source} does not exist; `source` names a manifest CSV or an nnU-Net raw folder")
    manifest = source / MANIFEST
    table = _read_csv(manifest) if manifest.is_file() else []
    if table and "image" in table[0]:
        return _manifest_cases(manifest, table)
    return _overridden(_folder_cases(source), table, manifest)


def read_images(manifest: Path) -> list[Row]:
    """Lists the images of a CSV for prediction, which needs neither labels nor splits.

    Raises:
        StudyError: The manifest is unreadable, empty, or lacks the column `image`.
    """
    return _manifest_cases(manifest, _read_csv(manifest), required=("image",))


def case_id(image: Path) -> str:
    """The id that a file name stands for: without `_0000` and `.nii` or `.nii.gz`."""
    match = IMAGE_NAME.fullmatch(image.name)
    return match["id"] if match and match["channel"] in (None, "0000") else image.name.partition(".nii")[0]


def _manifest_cases(path: Path, table: list[Row], required: tuple[str, ...] = REQUIRED) -> list[Row]:
    if not table:
        raise StudyError(f"{path} lists no cases; add one line per image")
    for column in required:
        if column not in table[0]:
            raise StudyError(f"{path} has no column '{column}'; a manifest needs {', '.join(required)}")
    rows = [dict.fromkeys(COLUMNS, "") | row for row in table]
    for row in rows:
        for column in ("image", "label"):
            row[column] = row[column] and str((path.parent / row[column]).resolve())
        row["id"] = row["id"] or case_id(Path(row["image"]))
    return rows


def _read_csv(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            header = [name.strip() for name in reader.fieldnames or ()]
            lines = [(reader.line_num, list(row.values()), row.get("")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path} is not a readable CSV file: {' '.join(str(error).split())}") from None
    for name in header:
        if name not in COLUMNS and (meant := difflib.get_close_matches(name, set(COLUMNS) - set(header), n=1)):
            raise StudyError(f"{path}: unknown column '{name}'; did you mean '{meant[0]}'?")
    rows = [dict(zip(header, (str(cell).strip() for cell in cells), strict=False)) for _, cells, _ in lines]
    problems = [f"line {number}: more cells than the header has columns" for number, _, extra in lines if extra]
    problems += [
        f"line {number}: no image is named"
        for (number, _, _), row in zip(lines, rows, strict=True)
        if not row.get("image", "-")
    ]
    if problems:
        raise StudyError(f"{path} has broken lines:", problems)
    return rows


def _folder_cases(folder: Path) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    for split, (images, labels) in SPLIT_FOLDERS.items():
        found: set[str] = set()
        for image in _nifti_files(folder / images):
            match = IMAGE_NAME.fullmatch(image.name)
            if match and match["channel"] not in (None, "0000"):
                problems.append(f"{image}: channel {int(match['channel'])}; a case has one channel, {match['id']}_0000")
                continue
            name = case_id(image)
            found.add(name)
            label = _label_of(folder / labels, name, required=split != "test")
            rows.append(dict.fromkeys(COLUMNS, "") | {"image": str(image), "label": label, "split": split, "id": name})
        orphans = [path for path in _nifti_files(folder / labels) if case_id(path) not in found]
        problems += [f"{path}: label without an image in {images}" for path in orphans]
    if problems:
        raise StudyError(f"{folder} cannot be paired by id:", problems)
    if not rows:
        raise StudyError(f"{folder} holds no images; an nnU-Net raw folder has imagesTr and labelsTr")
    return rows


def _label_of(folder: Path, name: str, required: bool) -> str:
    """The label's path; where none exists, the path it should have if it is required, else nothing."""
    candidates = [folder / f"{name}{ending}" for ending in (".nii.gz", ".nii")]
    existing = [path for path in candidates if path.exists()]
    return str(existing[0]) if existing else str(candidates[0]) if required else ""


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.name.endswith((".nii", ".nii.gz")))


def _overridden(rows: list[Row], table: Iterable[Row], manifest: Path) -> list[Row]:
    """The folder's rows with what the manifest says about their ids."""
    said: dict[str, Row] = {}
    for row in table:
        if not row.get("id"):
            raise StudyError(f"{manifest} has neither image nor id in a line; name the case it describes")
        said[row["id"]] = {column: cell for column, cell in row.items() if cell}
    if unknown := sorted(set(said) - {row["id"] for row in rows}):
        raise StudyError(f"{manifest} names cases that have no image in {manifest.parent}:", unknown)
    return [row | said.get(row["id"], {}) for row in rows]
