from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dropgen.config import RULES, Component, Experiment, load_experiment, resolve, to_json, validate, with_seeds
from dropgen.errors import ConfigError

RULE = {"rule": "target_validation"}

scalars = st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | st.text("abc", max_size=3)
options = st.dictionaries(st.sampled_from(["p", "tap", "mode"]), scalars | st.lists(scalars, max_size=3), max_size=2)
components = st.builds(lambda name, rest: Component.of(name, **rest), st.sampled_from(["erm", "dropgen"]), options)
experiments = st.builds(
    lambda **values: Experiment.model_validate(values),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True),
    study=st.just(Path("/data/heart/study.yaml")),
    methods=st.lists(components, min_size=1, max_size=3).map(tuple),
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=3).map(tuple),
    features=st.fixed_dictionaries({"source": st.sampled_from(["stored", "online", "auto"])}),
    selection=st.fixed_dictionaries({"rule": st.sampled_from(list(RULES))}),
    training=st.fixed_dictionaries({"steps": st.integers(1, 10**6), "learning_rate": st.floats(1e-8, 1)}),
    search=st.fixed_dictionaries({"max_minutes": st.none() | st.floats(0.1, 1e4)}),
)


def write(folder: Path, **values: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"name": "heart", "study": "study.yaml", "selection": RULE, **values}))
    return path


@given(experiments)
def test_an_experiment_survives_its_own_yaml(experiment: Experiment) -> None:
    text = yaml.safe_dump(to_json(experiment))
    assert validate(Experiment, yaml.safe_load(text), "here") == experiment
    assert json.loads(json.dumps(to_json(experiment))) == to_json(experiment)


def test_an_experiment_file_survives_loading_and_writing(tmp_path: Path) -> None:
    first = load_experiment(write(tmp_path, methods=[{"name": "dropgen", "p": [0, 0.5]}]), tmp_path)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(to_json(first)))
    assert load_experiment(tmp_path / "again.yaml", tmp_path) == first


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"trainning": {}}, "unknown key 'trainning'; did you mean 'training'?"),
        ({"training": {"step": 5}}, "unknown key 'training.step'; did you mean 'steps'?"),
        (
            {"training": {"augmentation": {"intensitty": True}}},
            "unknown key 'training.augmentation.intensitty'; did you mean 'intensity'?",
        ),
        ({"network": {"zzz": 1}}, "unknown key 'network.zzz'; known: base, convs, downs, name"),
    ],
)
def test_an_unknown_key_is_answered_with_the_closest_known_one(
    values: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, **values), tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path / "experiment.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"training": {"steps": 0}}, ("training.steps", "0")),
        ({"training": {"learning_rate": "fast"}}, ("training.learning_rate", "'fast'")),
        ({"name": "../up"}, ("name", "'../up'")),
        ({"evaluation": {"overlap": 1}}, ("evaluation.overlap", "1")),
        ({"features": {"source": "cached"}}, ("features.source", "'cached'")),
    ],
)
def test_a_wrong_value_is_named_with_its_key(values: dict[str, object], parts: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, **values), tmp_path)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("study: study.yaml\n")
    with pytest.raises(ConfigError, match="key 'name' is missing"):
        load_experiment(path, tmp_path)


@pytest.mark.parametrize("selection", ["", "selection: {}\n"])
def test_an_experiment_without_a_selection_rule_is_refused_and_told_which_there_are(
    selection: str, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"name: heart\nstudy: study.yaml\n{selection}")
    with pytest.raises(ConfigError, match=r"key 'selection\.rule' is missing") as caught:
        load_experiment(path, tmp_path)
    assert all(f"{rule} ({meaning})" in str(caught.value) for rule, meaning in RULES.items())
    assert load_experiment(path, tmp_path, ["--selection.rule=all_validation"]).selection.rule == "all_validation"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00"])
def test_a_file_that_holds_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"experiment\.yaml"):
        load_experiment(path, tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml", tmp_path)


def test_an_experiment_cannot_be_changed(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path), tmp_path)
    with pytest.raises(ValidationError):
        experiment.training.steps = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        experiment.name = "other"  # type: ignore[misc]


def test_any_leaf_is_set_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, training={"steps": 7, "batch": 3})
    items = ("--training.steps=200", "training.augmentation.affine=false", "--seeds=[1, 2]", "--methods=[{name: erm}]")
    experiment = load_experiment(path, tmp_path, items)
    assert (experiment.training.steps, experiment.training.batch) == (200, 3)
    assert not experiment.training.augmentation.affine
    assert experiment.seeds == (1, 2)
    assert [method.name for method in experiment.methods] == ["erm"]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("--training.step=5", "did you mean 'steps'"),
        ("--training.steps", "is not an override"),
        ("--name.first=x", "'name' is a single value"),
        ("--training.steps=[1", "is not YAML"),
        ("--training.steps=many", "training.steps = 'many'"),
    ],
)
def test_a_wrong_override_is_refused_in_a_sentence(item: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path), tmp_path, [item])
    assert sentence in str(caught.value)


def test_a_number_of_seeds_counts_on_from_the_first_and_a_list_replaces_them() -> None:
    experiment = validate(Experiment, {"name": "x", "study": "s.yaml", "seeds": [5, 9], "selection": RULE}, "x")
    assert with_seeds(experiment, 3).seeds == (5, 6, 7)
    assert with_seeds(experiment, [1, 4]).seeds == (1, 4)
    assert with_seeds(experiment, 3).model_copy(update={"seeds": (5, 9)}) == experiment
    for wrong, sentence in (
        (0, "names no seed"),
        ([], "names no seed"),
        (["a"], "seeds.0 = 'a'"),
        ("a", "seeds = 'a'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            with_seeds(experiment, wrong)


def test_paths_are_relative_to_their_file_and_know_root_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPGEN_DATA", "/volumes")
    root = tmp_path / "runs"
    assert resolve("a/b.nii", tmp_path / "studies", root) == tmp_path / "studies" / "a" / "b.nii"
    assert resolve("../b.nii", tmp_path / "studies", root) == tmp_path / "b.nii"
    assert resolve("{root}/demo/study.yaml", tmp_path, root) == root / "demo" / "study.yaml"
    assert resolve("{data}/heart", tmp_path, root) == Path("/volumes/heart")
    monkeypatch.delenv("DROPGEN_DATA")
    with pytest.raises(ConfigError, match="DROPGEN_DATA"):
        resolve("{data}/heart", tmp_path, root)


def test_a_component_keeps_its_options_beside_its_name() -> None:
    component = Component.of("dropgen", p=0.5)
    assert (component.label, component.options) == ("dropgen p=0.5", {"p": 0.5})


@pytest.mark.parametrize(
    "component",
    [
        Component.of("tent"),
        Component.of("tent", learning_rate=1e-05, steps=5, bn_stats="source"),
        Component.of("alpha", alpha=0.1),
    ],
)
def test_a_label_is_read_back(component: Component) -> None:
    assert Component.parse(component.label) == component


@pytest.mark.parametrize("text", ["", "  ", "steps=5", "tent steps", "tent steps=", "tent =5"])
def test_a_text_that_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a name with options"):
        Component.parse(text)
