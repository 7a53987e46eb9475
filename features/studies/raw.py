"""A study that has no YAML file yet: a manifest CSV, or an nnU-Net raw folder with its `dataset.json`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dropgen.errors import StudyError
from dropgen.features.studies.fingerprint import Fingerprint
from dropgen.features.studies.labelling import BACKGROUND, Labelling, described_labelling
from dropgen.features.studies.sources import channel_names, read_rows
from dropgen.features.studies.study import DEFAULT_DOMAIN, Study, case_of, load_study, structure_problems
from dropgen.manifest import read_json

YAML = (".yaml", ".yml")


def open_source(path: Path, root: Path) -> Study:
    """A study of its YAML file, of an experiment's, or of the images that a manifest or folder lists.

    Without a YAML file nothing is known of spacing, crop and classes: they stand at 1 mm, 1 voxel and none.

    Raises:
        ConfigError, StudyError: As `load_study`.
    """
    if path.suffix in YAML:
        return load_study(path, root)
    path = path.resolve()
    rows = read_rows(path)
    cases, channels = tuple(map(case_of, rows)), channel_names(rows[0])
    domains = {case.domain for case in cases} - {DEFAULT_DOMAIN}
    # The only channel of nnU-Net is CT where a modality is here, and the manifest names none.
    modality = "ct" if not channels and "CT" in _description(path).get("channel_names", {}).values() else None
    cases = tuple(replace(case, modality=case.modality or modality) for case in cases)
    told = described_labelling(_folder(path)) or Labelling(())
    study = Study(
        _name(path), told.classes, (1.0, 1.0, 1.0), (1, 1, 1), "minmax", not domains, cases,
        regions=told.regions, regions_class_order=told.order, ignore=told.ignore, channels=channels,
    )  # fmt: skip
    if problems := structure_problems(study):
        raise StudyError(f"{path}: {len(problems)} problems; nothing was started:", problems)
    return study


def class_names(study: Study, fingerprint: Fingerprint) -> tuple[str, ...]:
    """The study's classes, or as many names as the labels have values.

    Raises:
        StudyError: A training label holds a value beyond the classes.
    """
    highest = max(fingerprint.classes, default=0)
    if not study.classes:
        return (BACKGROUND, *(f"class {value}" for value in range(1, max(highest, 1) + 1)))
    if highest > study.labelling.last:
        raise StudyError(
            f"study {study.name}: label value {highest} is in {fingerprint.classes[highest].cases} training cases and "
            f"the classes are 0..{study.labelling.last} ({', '.join(study.classes)}); dropgen study check names the "
            "cases"
        )
    return study.classes


def _description(path: Path) -> dict[str, Any]:
    found = read_json(_folder(path) / "dataset.json")
    return found if isinstance(found, dict) else {}


def _name(path: Path) -> str:
    """Of the folder, in the letters that a study's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", _folder(path).name).lstrip("._-")[:64] or "study"


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
