from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dropgen.__main__ import main
from dropgen.commands import VERBS
from dropgen.config import to_json
from tests_support.archives import pandg
from tests_support.tiny import fill_store, tiny_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((REPOSITORY / "dropgen" / "schema.json").read_text())

Run = Callable[..., Any]


def require_valid(definition: str, document: object) -> None:
    Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{definition}"}).validate(document)


def strictly(text: str) -> Any:
    """Parses JSON as other languages do: no NaN, no Infinity."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one verb with --json and returns its exit code and its document, held against the schema."""

    def verb(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*words, "--json", "--root", str(tmp_path)])
        out = capsys.readouterr().out
        document = strictly(out)
        require_valid(words[0], document)
        return code, document

    return verb


def test_the_schema_is_one_and_defines_every_verb() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert set(VERBS) <= set(SCHEMA["$defs"])


def test_the_schema_refuses_what_it_does_not_know() -> None:
    document = {"experiment": "heart", "report": "/runs/heart/report.html"}
    require_valid("report", document)
    for wrong in ({"experiment": "heart"}, {**document, "more": 1}, {**document, "report": None}):
        assert not Draft202012Validator({**SCHEMA, "$ref": "#/$defs/report"}).is_valid(wrong)


def test_a_summary_has_the_keys_that_scripts_build_on() -> None:
    summary, row = SCHEMA["$defs"]["summary"], SCHEMA["$defs"]["row"]
    assert {"store", "tracking_uri", "model_uri", "report", "segmentations", "seconds", "table"} <= set(
        summary["required"]
    )
    assert {
        "method", "p", "seed", "steps", "converged", "val_dice", "selected", "source_dice", "target_dice",
    } <= set(row["required"])  # fmt: skip


def test_the_methods_are_listed_as_the_schema_says(run: Run) -> None:
    code, document = run("methods")
    assert code == 0
    assert "dropgen" in json.dumps(document)


def test_a_study_check_prints_its_document_whether_the_study_is_sound_or_not(run: Run, tmp_path: Path) -> None:
    study = tiny_experiment(tmp_path).study
    code, document = run("study", "check", str(study))
    assert (code, document["sound"], document["problems"]) == (0, True, [])
    next(study.parent.glob("labelsTr/*.nii.gz")).write_bytes(b"not a volume")
    code, document = run("study", "check", str(study))
    assert (code, document["sound"], len(document["problems"])) == (2, False, 1)


def test_a_study_conversion_prints_its_document(run: Run, tmp_path: Path) -> None:
    pandg(tmp_path / "raw")
    code, document = run("study", "convert", "pandg", str(tmp_path / "raw"), str(tmp_path / "out"))
    assert (code, document["splits"]) == (0, {"train": 6, "val": 3, "test": 4})
    assert Path(document["study"]).is_file() and Path(document["manifest"]).is_file()


def test_every_action_on_the_store_prints_its_document(run: Run, tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_json(experiment)))
    fill_store(experiment, tmp_path)
    for words in (("status", str(tmp_path / "tiny.yaml")), ("verify",), ("du",), ("gc",), ("gc", "--yes")):
        code, document = run("store", *words)
        assert (code, document["action"]) == (0, words[0])
    next(tmp_path.glob("store/labels/*/c.0.0.0")).write_bytes(b"short")
    code, document = run("store", "verify")
    assert (code, len(document["damaged"])) == (2, 1)


def test_the_crop_benchmark_prints_what_it_keeps(run: Run, tmp_path: Path) -> None:
    code, document = run("bench", "store", "--shape", "20,18,16", "--channels", "4", "--crops", "8")
    assert code == 0
    record = Path(document.pop("record"))
    assert record == tmp_path / "bench" / "store.json"
    assert document == strictly(record.read_text())
    assert document["settings"] == {"shape": [20, 18, 16], "channels": 4, "crops": [8], "repeats": 5}
    assert {row["bench"] for row in document["rows"]} == {"store"}
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]


@pytest.mark.nightly
@pytest.mark.slow
def test_the_precompute_benchmark_prints_what_it_keeps(run: Run, tmp_path: Path) -> None:
    code, document = run("bench", "precompute", "--shape", "9,8,7", "--workers", "1")
    assert code == 0
    record = Path(document.pop("record"))
    assert document == strictly(record.read_text())
    assert document["settings"] == {"shape": [9, 8, 7], "volumes": 8, "workers": [1], "repeats": 5}
    assert {row["bench"] for row in document["rows"]} == {"precompute"}
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]


def test_the_step_benchmark_prints_what_it_keeps(run: Run, tmp_path: Path) -> None:
    tiny = ("--crops", "8", "--network.base=1", "--network.downs=1", "--training.batch=1")
    code, document = run("bench", "step", *tiny)
    assert code == 0
    record = Path(document.pop("record"))
    assert document == strictly(record.read_text())
    assert document["settings"]["experiment"]["network"]["base"] == 1
    assert {row["bench"] for row in document["rows"]} == {"step"}
    assert str(tmp_path) not in record.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("store", "--network.base=2"), "bench store trains nothing, so '--network.base=2' says nothing to it"),
        (("store", "--crops", "64;128"), "--crops = '64;128': write voxels with commas between them"),
        (("store", "--repeats", "3"), "--repeats = 3: a benchmark needs at least 5"),
        (("step", "--repeats", "3"), "--repeats = 3: a benchmark needs at least 5"),
        (("step", "--channels", "4"), "--channels belongs to bench store"),
        (("store", "--workers", "2"), "--workers belongs to bench precompute"),
        (("precompute", "--workers", "two"), "--workers = 'two': write processes with commas between them"),
        (("precompute", "--crops", "64"), "--crops belongs to bench store, step and predict; leave it out"),
        (("precompute", "--network.base=2"), "bench precompute trains nothing"),
        (("step", "--crops", "64,128"), "bench step trains on crops of one size"),
    ],
)
def test_a_benchmark_refuses_what_it_would_not_read(
    words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words, "--root", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_main_job_prints_documents_that_the_schema_describes(run: Run, tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, methods=[{"name": "erm"}, {"name": "dropgen", "p": 0.5}])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_json(experiment)))
    words = str(path)
    _, summary = run("run", words)
    assert summary == strictly((tmp_path / "tiny" / "summary.json").read_text())
    assert [(row["method"], row["p"]) for row in summary["table"]] == [("erm", None), ("dropgen", 0.5)]
    assert all(Path(summary[key]).exists() for key in ("store", "report", "segmentations"))
    _, counted = run("store", "status", words)
    assert set(counted["missing"].values()) == {0}
    _, trained = run("train", words)
    assert len(trained["trials"]) == 2
    _, searched = run("search", words)
    assert searched["champion"]["folder"] in {trial["folder"] for trial in trained["trials"]}
    run("evaluate", words)
    run("report", words)
    _, compared = run("compare", "tiny", "tiny", "--margin", "1")
    assert [one["method"] for one in compared["methods"]] == ["erm", "dropgen p=0.5"]
    assert {each["difference"] for one in compared["methods"] for each in one["differences"]} == {0}
    _, registered = run("register", searched["champion"]["bundle"], "--name", "other")
    assert registered["model_uri"] == "models:/other@champion"
    images = experiment.study.parent / "imagesTs"
    _, segmented = run("segment", str(images), str(tmp_path / "masks"), "--name", "other")
    assert segmented["done"] == len(list(images.iterdir()))
