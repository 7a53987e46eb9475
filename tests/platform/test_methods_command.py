from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dropgen.__main__ import main
from dropgen.config import Component, Network, load_experiment
from dropgen.errors import WeightsError
from dropgen.features.extractors import EXTRACTORS
from dropgen.features.studies.study import Study, load_study
from dropgen.platform.adaptation import ADAPTATIONS
from dropgen.platform.catalogue import Entry, catalogue
from dropgen.platform.methods import METHODS
from dropgen.platform.methods.command import HEADINGS
from dropgen.platform.methods.page import markdown
from dropgen.platform.training.bench import require_trainable, trials_of
from tests_support.tiny import tiny_experiment

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    return load_study(tiny_experiment(root).study, root)


def test_every_registered_part_is_listed_once_under_the_heading_of_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    kinds = dict.fromkeys(entry.kind for entry in catalogue())
    assert [block[0] for block in blocks] == [f"{HEADINGS[kind]}:" for kind in kinds]
    names = [line.split()[0] for block in blocks for line in block[1:]]
    assert names == [entry.name for entry in catalogue()]
    assert {*METHODS, *ADAPTATIONS, *EXTRACTORS} <= set(names)


def test_the_document_says_of_every_part_what_a_script_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["methods"]}
    kinds = {name: part["kind"] for name, part in parts.items()}
    for name, kind in (
        ("erm", "method"), ("dropgen_any_p", "method"), ("squeeze_excite", "ablation"), ("dropgen+gin", "composition"),
        ("tent", "adaptation"), ("mind", "extractor"),
    ):  # fmt: skip
        assert kinds[name] == kind
    assert parts["dropgen"]["hyperparameters"] == {"p": 0.75, "min_keep": 0}
    assert parts["dropgen"]["search_space"] == {"p": [0, 0.25, 0.5, 0.75]}
    assert parts["tent"]["search_space"]["steps"] == [1, 5, 10, 20]
    assert parts["mind"]["hyperparameters"] == {"dilations": [1]}
    assert [name for name in ("erm", "dropgen", "tent", "sfb") if parts[name]["needs_features"]] == ["dropgen", "sfb"]


def test_every_value_that_a_search_tries_is_of_a_known_hyperparameter() -> None:
    for entry in catalogue():
        assert set(entry.search_space) <= set(entry.hyperparameters)


def test_the_page_in_docs_is_what_the_registry_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    page = (REPOSITORY / "docs" / "methods.md").read_text()
    assert page == capsys.readouterr().out, "run: dropgen methods --markdown > docs/methods.md"


def test_a_measured_cost_stands_beside_its_method_and_a_missing_one_is_a_dash() -> None:
    rows = [
        {"method": "erm", "features": "none", "ratio_to_erm": 1.0, "raw_s": [1.0, 0.95, 1.05]},
        {"method": "dropgen", "features": "stored", "ratio_to_erm": 1.054, "raw_s": [1.0, 1.054, 1.2]},
        {"method": "dropgen", "features": "online", "ratio_to_erm": 1.21, "raw_s": [1.21, 1.21, 1.21]},
        {"method": "finetune_decoder", "features": "none", "ratio_to_erm": None, "raw_s": []},
    ]
    settings = {"crop": 32, "experiment": {"network": {"name": "unet", "base": 8, "downs": 3}}}
    machine = {"accelerator": None, "cores": 2, "cpu": "a processor"}
    page = markdown(catalogue(), {"rows": rows, "settings": settings, "machine": machine, "commit": "abc"})
    costs = {
        cells[1].strip("`"): cells[6]
        for cells in (line.split(" | ") for line in page.replace("| `", "x | `").splitlines())
        if len(cells) > 7
    }
    assert costs["erm"] == "1.00"
    assert costs["dropgen"] == "1.05 stored, 1.21 online"
    assert {costs[name] for name in costs if name not in ("erm", "dropgen")} == {"–"}
    assert "lie up to 19% of their median apart" in page
    assert "2 cores of a processor, crops of 32 voxels, network unet with base 8 and 3 downsamplings" in page


@pytest.mark.parametrize("name", METHODS)
def test_the_printed_experiment_can_be_trained_and_searches_the_whole_space(
    name: str, study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["methods", "--yaml", name]) == 0
    path = tmp_path / "experiment.yaml"
    path.write_text(capsys.readouterr().out)
    experiment = load_experiment(path, tmp_path)
    tried = [trial.method.options for trial in trials_of(experiment) if trial.method.name == name]
    for option, values in METHODS[name].search_space.items():
        assert {options[option] for options in tried} == set(values)
    assert tried
    small = experiment.model_copy(update={"network": Network(base=2, downs=2)})
    large = dataclasses.replace(study, crop=(32, 32, 32))
    if name in ("finetune_extractor", "finetune_decoder"):
        with pytest.raises(WeightsError, match="anatomix"):
            require_trainable(small, large)
    else:
        assert len(require_trainable(small, large)) == len(trials_of(experiment))


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_every_listed_part_has_an_experiment_that_loads_beside_erm_and_names_it(
    entry: Entry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["methods", "--yaml", entry.name]) == 0
    path = tmp_path / "experiment.yaml"
    path.write_text(capsys.readouterr().out)
    experiment = load_experiment(path, tmp_path)
    names = [method.name for method in experiment.methods]
    named = {
        "adaptation": [adaptation.name for adaptation in experiment.adaptations],
        "extractor": [experiment.features.extractor.name],
    }
    assert entry.name in named.get(entry.kind, names)
    assert names[0] == "erm"
    assert len(names) > 1 or entry.name == "erm"
    if entry.kind == "adaptation":
        partner = ["rep_only"] if ADAPTATIONS[entry.name].needs_stable else []
        assert list(experiment.methods) == [*ADAPTATIONS[entry.name].adapts, *map(Component.of, partner)]
    assert len(experiment.seeds) == (3 if entry.name in ("gin", "gin_ipa") else 1)


def test_the_alias_of_a_method_prints_that_method(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for name in ("dropgen", "maskgen"):
        assert main(["methods", "--yaml", name]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_an_unknown_method_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--yaml", "dropgn"]) == 2
    assert "did you mean 'dropgen'" in capsys.readouterr().err
