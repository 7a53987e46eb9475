"""A study in nnU-Net's raw format: links to its files as they are, a `dataset.json`, and the split.

A file is copied only where nnU-Net could not open it by the one file ending that a data set has; then the same bytes
are compressed. Class values need no change: a study's are consecutive.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dropgen.features.studies.labelling import BACKGROUND, IGNORE
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import GZIP_MAGIC
from dropgen.manifest import write_json

DATASET = "Dataset001_study"
ENDING = ".nii.gz"


def write_dataset(folder: Path, study: Study, cases: Sequence[Case]) -> None:
    """Writes `imagesTr`, `labelsTr` and `dataset.json` of these labelled cases.

    nnU-Net names the classes of a data set in any order and reserves the names "background" and "ignore", so a class
    is called by its place and its name.
    """
    place_images(folder / "imagesTr", cases)
    for case in cases:
        assert case.label is not None
        _place(case.label, folder / "labelsTr" / f"{case.id}{ENDING}")
    labelling = study.labelling
    values: Sequence[int | Sequence[int]] = labelling.regions or range(1, len(study.classes))
    places = [f"{place} {name}" for place, name in enumerate(study.classes[1:], 1)]
    names = dict(zip(places, values, strict=True))
    unlabelled = {} if labelling.ignore is None else {IGNORE: labelling.ignore}
    order = {"regions_class_order": labelling.order} if labelling.regions else {}
    description = {
        "channel_names": {str(place): name for place, name in enumerate(channel_names(study))},
        "labels": {BACKGROUND: 0, **names, **unlabelled},
        **order,
        "numTraining": len(cases),
        "file_ending": ENDING,
        # The default reader keeps the axis order of each file; like every other method, nnU-Net gets RAS.
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    write_json(folder / "dataset.json", description)


def place_images(folder: Path, cases: Sequence[Case]) -> None:
    """Puts the image of every case where nnU-Net looks for its channels: `<id>_0000.nii.gz`, `<id>_0001.nii.gz`."""
    for case in cases:
        for channel, image in enumerate(case.images):
            _place(image, folder / f"{case.id}_{channel:04d}{ENDING}")


def write_split(path: Path, train: Sequence[Case], val: Sequence[Case]) -> None:
    """Writes `splits_final.json` with one fold."""
    write_json(path, [{"train": [case.id for case in train], "val": [case.id for case in val]}])


def channel_names(study: Study) -> tuple[str, ...]:
    """What decides nnU-Net's normalisation: "CT" by the training set's intensities, anything else by each volume's.

    A channel is "CT" where all training volumes of it hold Hounsfield units.
    """
    rules = [study.preparation.rules(case.modality) for case in study.split("train")]
    return tuple("CT" if set(of_channel) == {"hu"} else "MRI" for of_channel in zip(*rules, strict=True))


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with source.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if compressed:
            target.symlink_to(source.resolve())
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with gzip.open(partial, "wb", compresslevel=1) as copy:
            shutil.copyfileobj(file, copy)
        partial.replace(target)
