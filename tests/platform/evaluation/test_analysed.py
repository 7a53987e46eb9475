"""The analyses of an experiment: named alike everywhere, on disk, on the page."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, get_args

import pytest

from dropgen.config import Analysis
from dropgen.errors import ConfigError, ResourceError
from dropgen.platform.evaluation.analysed import ANALYSES, record_analysis, wanted
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.report import write_report
from dropgen.platform.evaluation.results import group_rows
from tests_support.tiny import tiny_experiment


@pytest.fixture
def scene(evaluated: Any) -> Scene:
    rows = [
        {"trial": result["key"], "method": result["method"], "p": result["p"], "options": result["options"],
         "seed": result["seed"], "steps": result["steps"], "converged": True, "val_dice": result["val_dice"],
         "selected": result["method"] == "dropgen", "source_dice": summary["source_dice"], "data_wait": 0.0,
         "target_dice": summary["target_dice"], "folder": result["folder"], "adaptation": None,
         "evaluation": str(Path(result["folder"]) / "evaluation")}
        for result, summary in zip(evaluated.results, evaluated.summaries, strict=True)
    ]  # fmt: skip
    return Scene(evaluated.bench, group_rows(rows))


def test_an_experiment_can_name_exactly_the_analyses_that_there_are(tmp_path: Path) -> None:
    assert set(get_args(Analysis)) == {"all", *ANALYSES}
    assert wanted(["all"]) == list(ANALYSES)
    assert wanted(["slices", "dependence"]) == ["dependence", "slices"]
    with pytest.raises(ConfigError, match="analyses"):
        tiny_experiment(tmp_path, analyses=["flattness"])


@pytest.mark.parametrize("name", ["dependence", "features", "slices"])
def test_a_figure_and_a_table_are_written_and_shown(scene: Scene, tmp_path: Path, name: str) -> None:
    found = record_analysis(name, scene, tmp_path / "analyses")
    assert found["skipped"] is None
    with Path(found["csv"]).open(newline="") as file:
        assert list(csv.DictReader(file))
    assert Path(found["figure"]).stat().st_size > 5000
    page = tmp_path / "page.html"
    rows = [row for group in scene.groups for row in group.rows]
    write_report(page, scene.bench.experiment, scene.bench.study, rows, "x", {"analyses": [found]})
    text = page.read_text()
    assert f"<h2>{found['title']}</h2>" in text
    assert f"analyses/{name}.csv" in text
    Path(found["figure"]).unlink()
    write_report(page, scene.bench.experiment, scene.bench.study, rows, "x", {"analyses": [found]})
    assert "is gone" in page.read_text()


def test_an_analysis_with_nothing_to_look_at_says_so_and_stops_nothing(scene: Scene, tmp_path: Path) -> None:
    found = record_analysis("condition1", scene, tmp_path)
    assert "no trial has measured it" in found["skipped"]
    assert found["figure"] is None
    page = tmp_path / "page.html"
    rows = [row for group in scene.groups for row in group.rows]
    write_report(page, scene.bench.experiment, scene.bench.study, rows, "x", {"analyses": [found]})
    assert "Nothing to show: no trial has measured it" in page.read_text()


def test_a_folder_that_cannot_be_written_is_told(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "analyses").write_text("a file")
    with pytest.raises(ResourceError, match="cannot write"):
        record_analysis("slices", scene, tmp_path / "analyses")
