"""The experiment: one typed, frozen description of everything a run depends on.

YAML is its serialised form; any leaf can be set from the command line (`--training.steps=200`).
An unknown key is an error that names the closest known one. Method and extractor options are kept
as plain values here and checked by their own registries, so that this floor knows no method.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dropgen.errors import ConfigError, closest

Section = TypeVar("Section", bound=BaseModel)

INTENSITY = "intensity"  # the option of every method that is no hyperparameter: an intensity rule beside the study's


class Frozen(BaseModel):
    """Base of every configuration section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Component(BaseModel):
    """A registered part chosen by name, with its own options beside the name.

    `{name: dropgen, p: 0.5}` selects the method "dropgen" with option p. The registry that owns the
    name checks the options (`platform.methods.build`, `features.extractors.build`).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `label` writes: `tent steps=5`.

        Raises:
            ConfigError: There is no name, or an option is not of the form key=value.
        """
        name, *items = text.split() or [""]
        if not name or "=" in name or any(not key or not value for key, _, value in (i.partition("=") for i in items)):
            raise ConfigError(f"'{text}' is not a name with options; write it as in 'tent steps=5 bn_stats=source'")
        return cls.of(name, **{key: _scalar(value) for key, _, value in (item.partition("=") for item in items)})

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name."""
        return dict(self.__pydantic_extra__ or {})

    @classmethod
    def of(cls, name: str, **options: Any) -> Self:
        """Builds a component from a name and its options."""
        return cls.model_validate({"name": name, **options})

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The options of a method without the intensity rule that its trials are prepared under."""
        return {key: value for key, value in self.options.items() if key != INTENSITY}

    @property
    def label(self) -> str:
        """Name and options in one line, for tables and folder names: `dropgen p=0.5`."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


class Features(Frozen):
    """Where a method's features come from."""

    extractor: Component = Component.of("mind")
    source: Literal["stored", "online", "auto"] = Field(
        "stored", description="auto: times training steps with either once and keeps to the faster"
    )
    online_share: float = Field(
        0, ge=0, lt=1, description="of training samples beside stored features: theirs are of the crop as augmented"
    )
    dtype: Literal["int8", "float16", "float32"] = "float16"
    store: str | None = Field(
        None, min_length=1, description="a folder or an address such as s3://bucket/prefix; <root>/store where None"
    )
    cache_gb: float = Field(100, gt=0, description="local copies of what lies in an object store, at most")


class Network(Frozen):
    """The predictor; the defaults are the paper's UNet.

    What `base`, `downs` and `convs` mean for a predictor, and which of them it refuses, is said in
    `platform/networks/<name>.py`.
    """

    name: Literal["unet", "segresnet", "swin_unetr"] = "unet"
    base: int = Field(20, ge=1)
    downs: int = Field(5, ge=1)
    convs: int = Field(2, ge=1, description="convolutions per encoder level")


class Augmentation(Frozen):
    """Random changes of a training crop; each item happens with probability `probability`."""

    probability: float = Field(0.33, ge=0, le=1)
    intensity: bool = True
    affine: bool = True


class Training(Frozen):
    """Optimisation of one trial."""

    steps: int = Field(40000, ge=1)
    batch: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    loss: Literal["dice_ce", "tversky_focal"] = "dice_ce"
    validate_every: int = Field(1000, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    augmentation: Augmentation = Augmentation()
    workers: int = Field(1, ge=1, description="data-parallel processes per trial")
    threads: int = Field(1, ge=1, description="CPU threads per process")
    device: Literal["auto", "cpu", "cuda"] = "auto"


Analysis = Literal[
    "all", "condition1", "dependence", "robustness", "flatness", "runtime", "extractors", "features", "slices"
]

LEAVE_ONE_OUT = "leave_one_domain_out"
RULES: Mapping[str, str] = {
    "target_validation": "validation cases of domains that are not trained on (the paper's rule)",
    "source_validation": "validation cases of the training domains",
    "all_validation": "all validation cases",
    LEAVE_ONE_OUT: "every training domain in turn, while the others are trained on",
}


class Selection(Frozen):
    """The rule by which everything is chosen that is chosen, as `RULES` says; the test split never takes part.

    It binds checkpoint, p, the hyperparameters of every baseline, test-time settings and the best of several seeds.
    There is no default: a result means nothing to a reader who does not know what chose it.
    """

    rule: Literal["target_validation", "source_validation", "all_validation", "leave_one_domain_out"]
    columns: bool = Field(
        False,
        description="also test what the last checkpoint and source_validation would have given",
    )


class Evaluation(Frozen):
    """Sliding-window prediction, and how masks are measured."""

    overlap: float = Field(0.5, ge=0, lt=1)
    nsd_tolerance: float = Field(2.0, gt=0, description="mm within which two surfaces are the same to NSD")


class Search(Frozen):
    """How hyperparameters are searched."""

    sampler: Literal["grid", "tpe"] = "grid"
    trials: int = Field(16, ge=1, description="number of trials of the tpe sampler")
    scheduler: Literal["none", "asha", "hyperband", "median"] = Field(
        "none", description="ends hopeless trials early, compared with others of their method and the first seed"
    )
    concurrent: int = Field(2, ge=1)
    test: Literal["every", "chosen"] = Field(
        "every", description="chosen: of each method only the hyperparameters with the best validation Dice are tested"
    )
    max_minutes: float | None = Field(None, gt=0)


class Experiment(Frozen):
    """One experiment: a study, the methods to compare on it, and how they are trained and chosen.

    A list as the value of a method option is a grid: `{name: dropgen, p: [0, 0.5]}` is two trials.
    With the tpe sampler `{p: {low: 0, high: 0.95}}` is a continuous range. Every method takes `intensity`, a rule that
    its trials scale intensities by instead of the study's: `{name: erm, intensity: [minmax, zscore]}`. `adaptations`
    are test-time methods, each applied to the trained models that it suits; what they leave open is tuned on the
    validation cases. `analyses` are what is measured beside Dice once all is tested, each a figure and a CSV.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    study: Path
    methods: tuple[Component, ...] = (Component.of("dropgen"),)
    adaptations: tuple[Component, ...] = ()
    analyses: tuple[Analysis, ...] = ()
    seeds: tuple[int, ...] = (42,)
    selection: Selection
    features: Features = Features()
    network: Network = Network()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    search: Search = Search()

    @property
    def intensities(self) -> tuple[str, ...]:
        """The rules that its methods name beside the study's, each once."""
        given = [method.options.get(INTENSITY) for method in self.methods]
        named = [rule for one in given for rule in (one if isinstance(one, list | tuple) else [one])]
        return tuple(dict.fromkeys(str(rule) for rule in named if rule is not None))

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.methods or not self.seeds:
            raise ValueError("methods and seeds must each name at least one entry")
        return self


class Trial(Frozen):
    """One training run inside an experiment: a method with fixed hyperparameters, and a seed."""

    method: Component
    seed: int

    @property
    def intensity(self) -> str | None:
        """The intensity rule that it is trained and tested under; None for the study's."""
        rule: str | None = self.method.options.get(INTENSITY)
        return rule

    @property
    def label(self) -> str:
        """`dropgen p=0.5 seed=42`."""
        return f"{self.method.label} seed={self.seed}"


def to_json(config: BaseModel) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dict(json.loads(config.model_dump_json()))


def load_experiment(path: Path, root: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment from YAML.

    Args:
        path: The YAML file.
        root: The folder that all output goes to; fills `{root}` in the file.
        overrides: `section.key=value` items, values in YAML syntax.

    Paths become absolute, as `resolve` says.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds a wrong key or value.
    """
    values = read_yaml(path)
    for item in overrides:
        _override(values, item)
    if "study" in values:
        values["study"] = str(resolve(str(values["study"]), path.parent, root))
    features = values.get("features")
    if isinstance(features, dict) and isinstance(features.get("store"), str):
        features["store"] = store_place(features["store"], path.parent, root)
    return validate(Experiment, values, str(path))


def with_seeds(experiment: Experiment, seeds: object) -> Experiment:
    """The same experiment with these seeds, or with this many, counted on from its first.

    Raises:
        ConfigError: There is not even one, or one is no whole number.
    """
    if isinstance(seeds, int):
        seeds = list(range(experiment.seeds[0], experiment.seeds[0] + seeds))
    if not seeds:
        raise ConfigError("--seeds names no seed; give a number of seeds, or a list as in [42,43]")
    return validate(Experiment, to_json(experiment) | {"seeds": seeds}, "--seeds")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name an experiment or study YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values; see configs/ for examples")
    return values


def resolve(text: str, folder: Path, root: Path) -> Path:
    """Turns a path from a YAML file into an absolute one.

    `{root}` stands for the output root and `{data}` for the folder named by DROPGEN_DATA; a relative
    path is relative to the YAML file's folder.
    """
    if "{data}" in text and not os.environ.get("DROPGEN_DATA"):
        raise ConfigError(f"path '{text}' needs DROPGEN_DATA: set it to the folder that holds your data")
    filled = text.replace("{root}", str(root)).replace("{data}", os.environ.get("DROPGEN_DATA", ""))
    return (folder / filled).resolve()


def store_place(text: str, folder: Path, root: Path) -> str:
    """A value of `features.store` that means the same wherever it is read: an address, or an absolute path."""
    return text if "://" in text else str(resolve(text, folder, root))


def validate(section: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """Validates plain values and turns every complaint into one sentence.

    Raises:
        ConfigError: Naming the key, the value and, for an unknown key, the closest known one.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        sentences = [_sentence(section, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(sentences)) from None


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)  # not YAML, which takes 1e-05 for a word
    except ValueError:
        return text


def _sentence(section: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{closest(location[-1], _fields_at(section, location[:-1]))}"
    if problem["type"] == "missing" and key in ("selection", "selection.rule"):
        rules = ", ".join(f"{name} ({meaning})" for name, meaning in RULES.items())
        return f"key 'selection.rule' is missing: by which cases is everything chosen? Name one of {rules}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key or 'the file'} = {problem['input']!r}: {message}"


def _fields_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = section.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        section = field.annotation
    return list(section.model_fields)


def _override(values: dict[str, Any], item: str) -> None:
    key, separator, text = item.removeprefix("--").partition("=")
    if not separator or not key:
        raise ConfigError(f"'{item}' is not an override; write --section.key=value, for example --training.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"'{item}': the value is not YAML") from None
    *parents, leaf = key.split(".")
    target = values
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"'{item}': '{parent}' is a single value, not a section")
        target = child
    target[leaf] = value
