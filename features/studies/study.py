"""A study: which cases belong to which subject, domain and split, and how their volumes are prepared."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self, cast

from pydantic import Field, field_validator, model_validator

from dropgen.config import Frozen, load_experiment, read_yaml, resolve, validate
from dropgen.errors import ConfigError, StudyError, closest
from dropgen.features.studies.codes import Code
from dropgen.features.studies.intensity import require_rule
from dropgen.features.studies.labelling import Labelling, described_labelling, labelling_of
from dropgen.features.studies.patterns import Patterns, pattern_rows
from dropgen.features.studies.prepare import MAX_CLASSES, Preparation
from dropgen.features.studies.sources import Row, channel_names, image_columns, read_rows
from dropgen.features.studies.splits import SPLITS, Split, shuffled

SPLITS_WITH_LABELS = ("train", "val")
LEGAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_ID = "zarr.json"  # the name of every Zarr node's metadata
DEFAULT_DOMAIN = "default"
CT, HU = "CT", "hu"  # the modality whose values are Hounsfield units, and the rule for them

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Voxels = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Case:
    """One image and its mask.

    Attributes:
        images: One file per channel of the image, all on one grid.
        subject: The person; splits and test statistics go by subject.
        domain: Scanner, sequence or site.
        modality: Chooses the intensity rule of an image of one channel where that depends on it, for example "ct".
        label: None where a test case has no mask.
    """

    id: str
    subject: str
    domain: str
    modality: str | None
    split: Split
    images: tuple[Path, ...]
    label: Path | None

    @property
    def image(self) -> Path:
        """The first channel: the one that pictures show, on the grid of all."""
        return self.images[0]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        classes: Class names, background first; the position is the label value where there are no regions.
        spacing: Target voxel size in mm, RAS axes.
        crop: Training crop and prediction window in voxels.
        intensity: A rule of `intensity.RULES`, or one rule per modality; per channel where there are several.
        orientation_augmentation: Whether flips and quarter turns are allowed: not where left and right
            are different classes.
        placeholder_spacing: Domains whose files hold a spacing that nobody measured: nothing in mm is told of them.
        tubular: Classes that are vessels, or shaped like them; clDice is measured of these.
        codes: What classes are in a terminology, by name; DICOM files say it.
        regions: As `Labelling.regions`, of classes that overlap.
        regions_class_order: As `Labelling.order`.
        ignore: As `Labelling.ignore`.
        channels: Names of the channels of every image; none where there is one, which needs no name.
    """

    name: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    crop: tuple[int, int, int]
    intensity: str | Mapping[str, str]
    orientation_augmentation: bool
    cases: tuple[Case, ...]
    placeholder_spacing: tuple[str, ...] = ()
    tubular: tuple[str, ...] = ()
    codes: Mapping[str, Code] = field(default_factory=dict)
    regions: tuple[tuple[int, ...], ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore: int | None = None
    channels: tuple[str, ...] = ()

    @property
    def image_channels(self) -> int:
        """M, the channels of every image."""
        return len(self.channels) or 1

    @property
    def labelling(self) -> Labelling:
        """What the values of its label maps mean."""
        return Labelling(self.classes, self.regions, self.regions_class_order, self.ignore)

    @property
    def preparation(self) -> Preparation:
        """How every volume of the study is prepared."""
        return Preparation(self.spacing, self.crop, self.intensity, self.channels)

    @property
    def train_domains(self) -> frozenset[str]:
        """The domains that are trained on."""
        return frozenset(case.domain for case in self.split("train"))

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split, in the source's order."""
        return tuple(case for case in self.cases if case.split == name)


class StudyFile(Frozen):
    """The study's YAML file; `source` is a manifest CSV, an nnU-Net raw folder, or patterns of file names."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    source: str | Patterns
    classes: tuple[str, ...] = Field((), min_length=2, max_length=MAX_CLASSES)
    labels: dict[str, int | tuple[int, ...]] = Field(
        default_factory=dict, description="instead of classes: values or lists of them, as nnU-Net's dataset.json"
    )
    regions_class_order: tuple[int, ...] = ()
    spacing: tuple[Millimetres, Millimetres, Millimetres]
    crop: tuple[Voxels, Voxels, Voxels]
    intensity: str | dict[str, str] = "minmax"
    orientation_augmentation: bool = True
    few_shot: int | None = Field(
        None, ge=1, description="train on so many people only, the same whatever the run's seed"
    )
    placeholder_spacing: tuple[str, ...] = ()
    tubular: tuple[str, ...] = ()
    codes: dict[str, Code] = Field(default_factory=dict)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("every class needs a name of its own")
        return classes

    @field_validator("intensity")
    @classmethod
    def _known(cls, intensity: str | dict[str, str]) -> str | dict[str, str]:
        try:
            for rule in [intensity] if isinstance(intensity, str) else intensity.values():
                require_rule(rule)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return intensity

    @model_validator(mode="after")
    def _classes_or_labels(self) -> Self:
        if self.classes and (self.labels or self.regions_class_order):
            raise ValueError("classes and labels say the same; give one of them, and regions_class_order with labels")
        return self


def load_study(path: Path, root: Path) -> Study:
    """Reads a study whose cases can be told apart and found; no volume is opened.

    Args:
        path: Study YAML, or an experiment YAML whose `study` names one.
        root: Output root; fills `{root}` in the files.

    Raises:
        ConfigError: A YAML file is missing or holds a wrong key or value.
        StudyError: The source is missing or lacks a column, cases are broken (all are listed), or `few_shot` asks for
            more people than there are.
    """
    study = read_study(path, root)
    if problems := structure_problems(study):
        raise StudyError(f"study {study.name}: {_count(len(problems), 'problem')}; nothing was started:", problems)
    return study


def read_study(path: Path, root: Path) -> Study:
    """Reads a study as `load_study`, but leaves broken cases for a check to list."""
    values = read_yaml(path)
    if "study" in values and "source" not in values:
        return read_study(load_experiment(path, root).study, root)
    if isinstance(source := values.get("source"), dict):
        values["source"] = validate(Patterns, source, f"{path}: source")
    file = validate(StudyFile, values, str(path))
    labelling = _labelling(file, path, root)
    rows = _rows(file.source, path.parent, root)
    cases = tuple(map(case_of, rows))
    return Study(
        name=file.name,
        classes=labelling.classes,
        spacing=file.spacing,
        crop=file.crop,
        intensity=file.intensity,
        orientation_augmentation=file.orientation_augmentation,
        cases=cases if file.few_shot is None else few_shot(cases, file.few_shot),
        placeholder_spacing=file.placeholder_spacing,
        tubular=file.tubular,
        codes=file.codes,
        regions=labelling.regions,
        regions_class_order=labelling.order,
        ignore=labelling.ignore,
        channels=channel_names(rows[0]),
    )


def _labelling(file: StudyFile, path: Path, root: Path) -> Labelling:
    """What a study's file says of its labels, or else the `dataset.json` of its nnU-Net raw folder."""
    found: Labelling | None = None
    if file.classes:
        found = Labelling(file.classes)
    elif file.labels:
        found = labelling_of(file.labels, file.regions_class_order, str(path))
    elif isinstance(file.source, str):
        found = described_labelling(resolve(file.source, path.parent, root))
    if found is None:
        raise ConfigError(f"{path}: key 'classes' is missing, and neither labels nor a dataset.json stand in for it")
    if found.highest >= MAX_CLASSES:
        raise ConfigError(f"{path}: labels go up to {found.highest}; masks hold values up to {MAX_CLASSES - 1}")
    for key, names in {"tubular": file.tubular, "codes": file.codes}.items():
        for name in names:
            if name not in found.classes[1:]:
                raise ConfigError(f"{path}: {key} names '{name}', which is no class{closest(name, found.classes[1:])}")
    return found


def _rows(source: str | Patterns, folder: Path, root: Path) -> list[Row]:
    if isinstance(source, Patterns):
        return pattern_rows(source, resolve(source.folder, folder, root))
    return read_rows(resolve(source, folder, root))


def few_shot(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """Keeps all training cases of the first `count` people of the split's shuffle, and every case of other splits.

    People are shuffled in the order of their case ids, as the released code orders its files, and not of their own
    names: `pat10_cropped` precedes `pat1_cropped`.

    Raises:
        StudyError: There are fewer people to train on.
    """
    first: dict[str, str] = {}
    for case in sorted((case for case in cases if case.split == "train"), key=lambda case: case.id):
        first.setdefault(case.subject, case.id)
    if count > len(first):
        raise StudyError(f"few_shot = {count}: the study has {_count(len(first), 'subject')} to train on; lower it")
    kept = set(shuffled(first)[:count])
    return tuple(case for case in cases if case.split != "train" or case.subject in kept)


def case_of(row: Row) -> Case:
    """The case that a line of a manifest or a file of a raw folder stands for."""
    return Case(
        id=row["id"],
        subject=row["subject"] or row["id"],
        domain=row["domain"] or DEFAULT_DOMAIN,
        modality=row["modality"] or None,
        split=cast(Split, row["split"]),  # an unknown split is one of the structure's problems
        images=tuple(Path(row[column]) for column in image_columns(row)),
        label=Path(row["label"]) if row["label"] else None,
    )


def structure_problems(study: Study) -> list[str]:
    """Everything that is wrong with the list of cases, one line each, without opening a volume."""
    problems = [line for case in study.cases for line in _case_problems(case, study)]
    for same in _groups(study.cases, [case.id.casefold() for case in study.cases]):
        problems.append(f"case {same[0].id}: {len(same)} cases have this id, upper and lower case being the same")
    owners: dict[Path, str] = {}
    for case in study.cases:
        for place, image in enumerate(case.images):
            if (owner := owners.setdefault(image, case.id)) != case.id or image in case.images[:place]:
                problems.append(f"case {case.id}: image {image} is already the image of case {owner}")
    for subject in sorted({case.subject for case in study.cases}):
        splits = sorted({case.split for case in study.cases if case.subject == subject})
        if len(splits) > 1:
            problems.append(f"subject {subject}: in splits {' and '.join(splits)}; a subject belongs to one")
    domains = sorted({case.domain for case in study.cases})
    for domain in study.placeholder_spacing:
        if domain not in domains:
            problems.append(f"placeholder_spacing names domain '{domain}', which has no case{closest(domain, domains)}")
    if study.channels and not isinstance(study.intensity, str):
        for name in study.channels:
            if name not in study.intensity:
                known = ", ".join(study.intensity)
                problems.append(f"channel '{name}' has no intensity rule; the study has rules for {known}")
    if not study.split("train"):
        problems.append("no case has split train; a study needs cases to train on")
    return problems


def _case_problems(case: Case, study: Study) -> list[str]:
    lines = []
    if not LEGAL_ID.fullmatch(case.id) or case.id.casefold() == RESERVED_ID:
        lines.append(
            f"id '{case.id}' is not allowed; use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    if case.split not in SPLITS:
        lines.append(f"split '{case.split}' is unknown{closest(case.split, SPLITS)}")
    for name, image in zip(study.channels or ("",), case.images, strict=True):
        if not image.is_file():
            lines.append(f"{f'channel {name}: ' if name else ''}image {image} does not exist")
    if case.label is None and case.split in SPLITS_WITH_LABELS:
        lines.append(f"split {case.split} needs a label and none is named")
    if case.label is not None and not case.label.is_file():
        lines.append(f"label {case.label} does not exist")
    if not study.channels and not isinstance(study.intensity, str) and case.modality not in study.intensity:
        known = ", ".join(sorted(study.intensity))
        lines.append(f"modality '{case.modality or ''}' has no intensity rule; the study has rules for {known}")
    return [f"case {case.id}: {line}" for line in lines]


def _groups(cases: Sequence[Case], keys: Sequence[str]) -> list[list[Case]]:
    """The cases that share a key with another one, grouped."""
    grouped = defaultdict(list)
    for case, key in zip(cases, keys, strict=True):
        grouped[key].append(case)
    return [same for same in grouped.values() if len(same) > 1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def under_rule(study: Study, rule: str) -> Study:
    """The same cases with their intensities scaled by one rule, whatever the study's is; itself where it is that one.

    Raises:
        ConfigError: The rule is unknown, or one of Hounsfield units and a case or channel is no CT.
    """
    require_rule(rule)
    if study.intensity == rule:
        return study
    others = [f"channel {name} of study {study.name} is none" for name in study.channels if name.upper() != CT] or [
        f"case {case.id} of study {study.name} is {case.modality}"
        for case in study.cases
        if case.modality is not None and case.modality.upper() != CT
    ]
    if rule == HU and others:
        raise ConfigError(f"intensity = {HU} is for CT, and {others[0]}; name minmax, percentile or zscore")
    return replace(study, name=f"{study.name}-{rule}", intensity=rule)
