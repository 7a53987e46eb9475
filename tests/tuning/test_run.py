"""The main job whole on a tiny study: what it leaves, and that a second run does nothing twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.config import Experiment
from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.manifest import Manifest, read_json
from dropgen.platform.evaluation.touches import read_touches
from dropgen.platform.tracking import fetch
from dropgen.tuning.run import run
from dropgen.tuning.stages import Stages
from tests_support.channels import NAMES, two_channel_experiment
from tests_support.tiny import tiny_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
ANALYSES = ["dependence", "slices"]
STAGES = ["check", "precompute", "search", "evaluate", "register", "replay"]
STAGES += [*(f"analyse {name}" for name in ANALYSES), "report"]


def two_methods(root: Path) -> Experiment:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": [0, 0.5]}]
    return tiny_experiment(root, methods=methods, seeds=[1, 2], analyses=ANALYSES)


@pytest.mark.slow
def test_a_study_becomes_a_registered_model_and_a_second_run_reuses_everything(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = two_methods(root)
    summary = run(experiment, root)
    jsonschema.validate(summary, schema("summary"))
    assert read_json(root / "tiny" / "summary.json") == summary
    assert list(summary["seconds"]) == STAGES
    rows = summary["table"]
    once = f"The test cases were predicted {len(rows)} times, once by each of {len(rows)} models (test-touches.jsonl)."
    assert summary["touches"] == {"count": len(rows), "said": once}
    assert {(touch.trial, touch.verb) for touch in read_touches(root / "tiny")} == {
        (row["trial"], "run") for row in rows
    }
    for page in ("results.md", "report.html"):
        assert once in (root / "tiny" / page).read_text()
    entries = len(list((root / "store" / "features").iterdir()))
    assert summary["extraction"] == {"entries": entries, "extracted": 0, "trials": 4}  # the fixture filled the store
    assert sorted((row["method"], row["p"], row["seed"]) for row in rows if row["method"] == "dropgen") == [
        ("dropgen", 0, 1), ("dropgen", 0, 2), ("dropgen", 0.5, 1), ("dropgen", 0.5, 2),
    ]  # fmt: skip
    means = {p: sum(row["val_dice"] for row in rows if row["p"] == p and row["method"] == "dropgen") for p in (0, 0.5)}
    assert {row["p"] for row in rows if row["selected"]} == {max(means, key=lambda p: means[p])}
    selected = [row for row in rows if row["selected"]]
    best = max(selected, key=lambda row: row["val_dice"])
    assert summary["champion"]["key"] == best["trial"]
    assert read_json(fetch(root, "tiny") / "segmenter.json") == read_json(
        Path(best["folder"]) / "bundle" / "segmenter.json"
    )
    page = Path(summary["report"]).read_text()
    assert summary["headline"] in page
    assert [(one["name"], one["skipped"]) for one in summary["analyses"]] == [(name, None) for name in ANALYSES]
    assert all(one["title"] in page and Path(one["csv"]).is_file() for one in summary["analyses"])
    for mask in Path(summary["segmentations"]).glob("*.nii.gz"):
        (image,) = (root / "study").glob(f"images*/{mask.name.removesuffix('.nii.gz')}_*.nii.gz")
        assert read_mask(mask).array.shape == read_volume(image).array.shape
    assert list(Path(summary["segmentations"]).glob("*.nii.gz"))
    published = read_json(root / "tiny" / "results.json")
    assert [row["val_dice"] for row in published["table"]] == [row["val_dice"] for row in rows]
    assert str(root) not in json.dumps(published) + (root / "tiny" / "results.md").read_text()

    monkeypatch.setattr("dropgen.tuning.run.connect", lambda *_: pytest.fail("Ray was asked for with nothing to do"))
    again = run(experiment, root)
    assert again["skipped"] == STAGES
    assert again["table"] == rows
    assert [again[name] for name in ("touches", "budget", "extraction")] == [
        summary[name] for name in ("touches", "budget", "extraction")
    ]
    assert sum(again["seconds"].values()) < 0.2 * sum(summary["seconds"].values())
    assert again["computed_seconds"] == summary["computed_seconds"]

    Path(summary["report"]).unlink()
    assert run(experiment, root)["skipped"] == STAGES[:-1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_study_of_two_channels_becomes_a_registered_model_that_segments_its_images(tmp_path: Path) -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": 0.5}]
    experiment = two_channel_experiment(
        tmp_path, methods=methods, analyses=["dependence", "robustness", "extractors", "features", "slices"],
        training={"steps": 4, "validate_every": 2},
    )  # fmt: skip
    summary = run(experiment, tmp_path)
    jsonschema.validate(summary, schema("summary"))
    assert {row["method"] for row in summary["table"]} == {"erm", "dropgen"}
    assert [one["skipped"] for one in summary["analyses"]] == [None] * 5
    bundle = fetch(tmp_path, "tiny")
    assert read_json(bundle / "segmenter.json")["spec"]["channels"] == list(NAMES)
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    shutil.copytree(tmp_path / "channels" / "imagesTs", scans)
    assert main(["segment", str(scans), str(masks), "--bundle", str(bundle), "--root", str(tmp_path)]) == 0
    images = {path.name.removesuffix("_0000.nii.gz") for path in scans.glob("*_0000.nii.gz")}
    assert {path.name.removesuffix(".nii.gz") for path in masks.glob("*.nii.gz")} == images
    segmented = Path(next(row for row in summary["table"] if row["trial"] == summary["champion"]["key"])["folder"])
    for case in images:
        evaluated = read_mask(segmented / "evaluation" / "masks" / f"{case}.nii.gz")
        assert np.array_equal(read_mask(masks / f"{case}.nii.gz").array, evaluated.array)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_open_source_of_features_is_chosen_once_and_is_in_the_manifest(root: Path) -> None:
    experiment = tiny_experiment(root, features={"source": "auto"}, training={"steps": 2, "validate_every": 1})
    first = run(experiment, root)
    manifest = read_json(root / "tiny" / "manifest.json")
    choice = manifest["stages"]["features"]["result"]
    assert choice["source"] in ("stored", "online")
    assert choice["stored_s"] is not None
    assert {read_json(Path(row["folder"]) / "result.json")["features"] for row in first["table"]} == {choice["source"]}
    again = run(experiment, root)
    assert again["table"] == first["table"]
    assert read_json(root / "tiny" / "manifest.json")["stages"]["features"]["result"] == choice


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_method_under_two_intensity_rules_is_prepared_trained_and_told_under_both(root: Path) -> None:
    methods = [{"name": "erm", "intensity": ["minmax", "zscore"]}]
    experiment = tiny_experiment(root, methods=methods, training={"steps": 2, "validate_every": 2})
    summary = run(experiment, root)
    jsonschema.validate(summary, schema("summary"))
    assert "precompute zscore" in summary["seconds"]
    assert sorted(row["options"]["intensity"] for row in summary["table"]) == ["minmax", "zscore"]
    assert summary["intensity"] == "minmax"
    assert any(note.startswith("Intensities are scaled by: ERM ") and "(of 2)" in note for note in summary["notes"])
    assert run(experiment, root)["table"] == summary["table"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_features_are_extracted_once_whatever_the_number_of_trials(root: Path) -> None:
    entries = sorted((root / "store" / "features").iterdir())
    for entry in entries[:2]:
        shutil.rmtree(entry)
    methods = [{"name": "rep_only"}, {"name": "dropgen", "p": [0, 0.5]}]
    training = {"steps": 2, "validate_every": 2}
    summary = run(tiny_experiment(root, methods=methods, training=training), root)
    assert summary["extraction"] == {"entries": len(entries), "extracted": 2, "trials": 3}
    assert sorted((root / "store" / "features").iterdir()) == entries
    said = (
        f"{len(entries)} volumes lie in one store, each extracted once (2 in this run, {len(entries) - 2} found there)"
    )
    assert said in (root / "tiny" / "results.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_other_ways_to_choose_stand_beside_the_chosen_where_they_are_asked_for(root: Path) -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": 0.5}]
    selection = {"rule": "target_validation", "columns": True}
    summary = run(tiny_experiment(root, methods=methods, selection=selection), root)
    jsonschema.validate(summary, schema("summary"))
    lines = {line["method"]: line for line in summary["columns"]["lines"]}
    assert set(lines) == {"erm", "dropgen"}
    for line in lines.values():
        assert line["source_rule"] is None  # every validation case of this study is of another domain
        assert line["oracle"]["unseen"] >= max(line["chosen"]["unseen"], line["last"]["unseen"])
    late = [row for row in summary["table"] if row["selected"] or row["method"] == "erm"]
    extra = sum(row["best_step"] != row["steps"] for row in late)
    assert summary["touches"]["count"] == len(summary["table"]) + extra
    for page in ("results.md", "report.html"):
        text = (root / "tiny" / page).read_text()
        assert "oracle (not a result)" in text
        assert "Without a source rule: dropgen, erm" in text


def test_a_stage_is_skipped_only_with_the_same_key_and_its_outputs_there(tmp_path: Path) -> None:
    output = tmp_path / "output"
    calls: list[str] = []

    def work() -> tuple[list[Path], Any]:
        output.write_text("x")
        calls.append("done")
        return [output], {"answer": 42}

    def stages() -> Stages:
        return Stages(Manifest(tmp_path / "manifest.json", "run", {}))

    assert stages().do("search", "a", work) == {"answer": 42}
    second = stages()
    assert second.do("search", "a", work) == {"answer": 42}
    assert second.skipped == ["search"]
    assert len(calls) == 1
    stages().do("search", "b", work)
    assert len(calls) == 2
    output.unlink()
    stages().do("search", "b", work)
    assert len(calls) == 3
    stages().do("search", "b", work, due=True)
    assert len(calls) == 4


def test_an_incomplete_stage_is_not_recorded(tmp_path: Path) -> None:
    first = Stages(Manifest(tmp_path / "manifest.json", "run", {}))
    first.do("search", "a", lambda: (None, {"unfinished": ["erm"]}))
    second = Stages(Manifest(tmp_path / "manifest.json", "run", {}))
    second.do("search", "a", lambda: (None, {"unfinished": []}))
    assert second.skipped == []


def test_a_broken_study_stops_the_run_before_any_work(root: Path) -> None:
    experiment = tiny_experiment(root, methods=[{"name": "erm"}])
    victim = sorted((root / "study").glob("imagesTr/*.nii.gz"))[0]
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(StudyError) as caught:
        run(experiment, root)
    assert victim.name.removesuffix("_0000.nii.gz") in str(caught.value)
    assert not (root / "tiny" / "trials").exists()


def test_a_crop_that_the_network_cannot_halve_stops_the_run_before_any_work(root: Path) -> None:
    store = set((root / "store").rglob("*"))
    with pytest.raises(ConfigError, match=r"crop axis x = 16 voxels"):
        run(tiny_experiment(root, network={"downs": 4}, features={"dtype": "float16"}), root)
    assert set((root / "store").rglob("*")) == store


def test_p_out_of_range_stops_the_run_before_any_work(root: Path) -> None:
    with pytest.raises(ConfigError):
        run(tiny_experiment(root, methods=[{"name": "dropgen", "p": 1.5}]), root)
    assert not (root / "tiny").exists()


def test_the_script_refuses_an_unknown_key_with_exit_code_2_and_clean_stdout(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("name: x\nstudy: study.yaml\ntrainig: {}\n")
    command = [sys.executable, "tuning/run.py", str(file), "--json", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean 'training'" in done.stderr


def schema(name: str) -> dict[str, Any]:
    document = json.loads((REPOSITORY / "dropgen" / "schema.json").read_text())
    return {"$ref": f"#/$defs/{name}", "$defs": document["$defs"]}
