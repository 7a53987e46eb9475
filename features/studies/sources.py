"""Where a study's cases are listed: a manifest CSV, or an nnU-Net raw folder with or without one.

Both give rows of plain text, one per case, with the columns of `COLUMNS` and absolute paths; in the place of `image`
stands one column `image_<channel>` per channel where images have several. Nothing is opened here but the manifest
itself, and a folder's `dataset.json` for the names of the channels.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dropgen.errors import StudyError
from dropgen.manifest import read_json

Row = dict[str, str]  # "" stands for an empty cell

IMAGE, CHANNEL = "image", "image_"  # the column of an image; of a channel, its name behind
REQUIRED = (IMAGE, "label", "split")
COLUMNS = (*REQUIRED, "subject", "domain", "modality", "id")
MANIFEST = "manifest.csv"
SPLIT_FOLDERS = {"train": ("imagesTr", "labelsTr"), "val": ("imagesVal", "labelsVal"), "test": ("imagesTs", "labelsTs")}
IMAGE_NAME = re.compile(r"(?P<id>.+?)(?:_(?P<channel>\d{4}))?\.nii(?:\.gz)?")


def read_rows(source: Path) -> list[Row]:
    """Lists the cases of a manifest CSV or of an nnU-Net raw folder.

    A `manifest.csv` in the folder wins: with a column `image` it is the whole list, without one it sets
    subject, domain, modality and split of the cases that it names by `id`.

    Raises:
        StudyError: The source is missing, empty, or lacks a column; channels beyond those of the folder's
            `dataset.json` or labels without image are listed all at once.
    """
    if source.is_file():
        return _manifest_cases(source, _read_csv(source))
    if not source.is_dir():
        raise StudyError(f"{source} does not exist; `source` names a manifest CSV or an nnU-Net raw folder")
    manifest = source / MANIFEST
    table = _read_csv(manifest) if manifest.is_file() else []
    if table and image_columns(table[0]):
        return _manifest_cases(manifest, table)
    return _overridden(_folder_cases(source), table, manifest)


def read_images(manifest: Path) -> list[Row]:
    """Lists the images of a CSV for prediction, which needs neither labels nor splits.

    Raises:
        StudyError: The manifest is unreadable, empty, or lacks the column `image`.
    """
    return _manifest_cases(manifest, _read_csv(manifest), required=(IMAGE,))


def image_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Those that name images: `image`, or `image_<channel>` for every channel, in their order."""
    return tuple(column for column in columns if column == IMAGE or column.startswith(CHANNEL))


def channel_names(row: Row) -> tuple[str, ...]:
    """Names of a row's channels; none where its image is the only one."""
    return tuple(column.removeprefix(CHANNEL) for column in row if column.startswith(CHANNEL))


def row_of(images: Mapping[str, str], **cells: str) -> Row:
    """A row of these images, by column, and these cells; the others are empty."""
    return {**images, **dict.fromkeys(COLUMNS[1:], ""), **cells}


def case_id(image: Path) -> str:
    """The id that a file name stands for: without `_0000` and `.nii` or `.nii.gz`."""
    match = IMAGE_NAME.fullmatch(image.name)
    return match["id"] if match and match["channel"] in (None, "0000") else image.name.partition(".nii")[0]


def _manifest_cases(path: Path, table: list[Row], required: tuple[str, ...] = REQUIRED) -> list[Row]:
    if not table:
        raise StudyError(f"{path} lists no cases; add one line per image")
    images = image_columns(table[0])
    for column in required:
        if column not in table[0] and not (column == IMAGE and images):
            raise StudyError(f"{path} has no column '{column}'; a manifest needs {', '.join(required)}")
    if images != (IMAGE,) and (IMAGE in images or len(images) == 1):
        raise StudyError(
            f"{path} has the columns {', '.join(images)}; one image per case is '{IMAGE}', and several channels are "
            f"'{CHANNEL}<channel>' each"
        )
    rows = []
    for cells in table:
        row = row_of({column: cells[column] for column in images}) | cells
        for column in (*images, "label"):
            row[column] = row[column] and str((path.parent / row[column]).resolve())
        rows.append(row | {"id": row["id"] or case_id(Path(row[images[0]]))})
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
        if name in COLUMNS or name.startswith(CHANNEL):
            continue
        if meant := difflib.get_close_matches(name, set(COLUMNS) - set(header), n=1):
            raise StudyError(f"{path}: unknown column '{name}'; did you mean '{meant[0]}'?")
    rows = [dict(zip(header, (str(cell).strip() for cell in cells), strict=False)) for _, cells, _ in lines]
    problems = [f"line {number}: more cells than the header has columns" for number, _, extra in lines if extra]
    problems += [
        f"line {number}: no image is named" + (f" in {column}" if column != IMAGE else "")
        for (number, _, _), row in zip(lines, rows, strict=True)
        for column in image_columns(row)
        if not row[column]
    ]
    if problems:
        raise StudyError(f"{path} has broken lines:", problems)
    return rows


def _folder_cases(folder: Path) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    columns = _described_columns(folder / "dataset.json")
    told = f"{len(columns)} channels, as dataset.json names them, from" if len(columns) > 1 else "one channel,"
    for split, (images, labels) in SPLIT_FOLDERS.items():
        found: dict[str, dict[int, Path]] = {}
        for image in _nifti_files(folder / images):
            match = IMAGE_NAME.fullmatch(image.name)
            channel, name = (int(match["channel"] or 0), match["id"]) if match else (0, case_id(image))
            if channel >= len(columns):
                problems.append(f"{image}: channel {channel}; a case has {told} {name}_0000")
            elif other := found.setdefault(name, {}).get(channel):
                problems.append(f"{image}: channel {channel} of case {name} is {other.name} already; remove one")
            else:
                found[name][channel] = image
        for name, files in found.items():
            ending = ".nii.gz" if next(iter(files.values())).name.endswith(".gz") else ".nii"
            paths = [files.get(at, folder / images / f"{name}_{at:04d}{ending}") for at in range(len(columns))]
            label = _label_of(folder / labels, name, required=split != "test")
            rows.append(row_of(dict(zip(columns, map(str, paths), strict=True)), label=label, split=split, id=name))
        orphans = [path for path in _nifti_files(folder / labels) if case_id(path) not in found]
        problems += [f"{path}: label without an image in {images}" for path in orphans]
    if problems:
        raise StudyError(f"{folder} cannot be paired by id:", problems)
    if not rows:
        raise StudyError(f"{folder} holds no images; an nnU-Net raw folder has imagesTr and labelsTr")
    return rows


def _described_columns(path: Path) -> tuple[str, ...]:
    """The image columns of a folder, by the channels that its `dataset.json` names.

    Raises:
        StudyError: Channels are not numbered from 0 on, or two have one name.
    """
    description = read_json(path)
    named = description.get("channel_names") if isinstance(description, dict) else None
    if not isinstance(named, dict) or len(named) < 2:
        return (IMAGE,)
    if set(named) != {str(place) for place in range(len(named))}:
        raise StudyError(f"{path}: channel_names has the keys {', '.join(named)}; number the channels from 0 on")
    names = [str(named[str(place)]) for place in range(len(named))]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(
                f"{path}: channel_names names '{name}' {names.count(name)} times; give every channel a name of its own"
            )
    return tuple(CHANNEL + name for name in names)


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
