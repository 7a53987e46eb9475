"""A study that has no YAML file yet: a manifest CSV, or an nnU-Net raw folder with its `dataset.json`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dropgen.errors import StudyError
from dropgen.features.studies.fingerprint import Fingerprint
from dropgen.features.studies.sources import read_rows
from dropgen.features.studies.study import DEFAULT_DOMAIN, Study, case_of, load_study, structure_problems
from dropgen.manifest import read_json

YAML = (".yaml", ".yml")
BACKGROUND = "background"


def open_source(path: Path, root: Path) -> Study:
    """A study of its YAML file, of an experiment's, or of the images that a manifest or folder lists.

    Without a YAML file nothing is known of spacing, crop and classes: they stand at 1 mm, 1 voxel and none.

    Raises:
        ConfigError, StudyError: As `load_study`.
    """
    if path.suffix in YAML:
        return load_study(path, root)
    path = path.resolve()
    cases = tuple(case_of(row) for row in read_rows(path))
    domains = {case.domain for case in cases} - {DEFAULT_DOMAIN}
    # A CT channel of nnU-Net is what a modality is here, where the manifest names none.
    modality = "ct" if "CT" in _description(path).get("channel_names", {}).values() else None
    cases = tuple(replace(case, modality=case.modality or modality) for case in cases)
    study = Study(_name(path), (), (1.0, 1.0, 1.0), (1, 1, 1), "minmax", not domains, cases)
    if problems := structure_problems(study):
        raise StudyError(f"{path}: {len(problems)} problems; nothing was started:", problems)
    return study


def class_names(study: Study, path: Path, fingerprint: Fingerprint) -> tuple[str, ...]:
    """The study's classes, or those of `dataset.json`, or as many names as the labels have values.

    Raises:
        StudyError: A training label holds a value beyond the classes.
    """
    highest = max(fingerprint.classes, default=0)
    classes = study.classes or _described_classes(path)
    classes = classes or (BACKGROUND, *(f"class {value}" for value in range(1, max(highest, 1) + 1)))
    if highest >= len(classes):
        raise StudyError(
            f"study {study.name}: label value {highest} is in {fingerprint.classes[highest].cases} training cases and "
            f"the classes are 0..{len(classes) - 1} ({', '.join(classes)}); dropgen study check names the cases"
        )
    return classes


def _described_classes(path: Path) -> tuple[str, ...]:
    labels = _description(path).get("labels", {})
    # Older files map "1" to a name, newer ones a name to 1; regions, which are lists, are no classes.
    pairs = [(value, name) if isinstance(value, int) else (name, value) for name, value in labels.items()]
    names = {int(value): str(name) for value, name in pairs if re.fullmatch(r"\d+", str(value))}
    return tuple(names[value] for value in sorted(names)) if sorted(names) == list(range(len(labels))) else ()


def _description(path: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    found = read_json(folder / "dataset.json")
    return found if isinstance(found, dict) else {}


def _name(path: Path) -> str:
    """Of the folder, in the letters that a study's name may have."""
    folder = path if path.is_dir() else path.parent
    return re.sub(r"[^A-Za-z0-9._-]", "-", folder.name).lstrip("._-")[:64] or "study"
