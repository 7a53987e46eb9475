"""Replayed against recomputed features: exact where the extractor says so, measured where it does not.

The rows of docs/feature-store.md: `python -m pytest -s -m nightly tests/platform/evaluation/test_replay.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

from dropgen.console import say
from dropgen.errors import ResourceError
from dropgen.features.studies.phantom import make_phantom_study
from dropgen.platform.evaluation.replay import ANGLES, SCALES, Row, compare_geometry, exact, mean_over
from dropgen.platform.evaluation.replay_record import record_replay
from dropgen.platform.train import Workbench
from dropgen.platform.training.batches import Batches
from tests_support.anatomix import weights
from tests_support.tiny import tiny_bench

KINDS = {"flip", "quarter turn", "rotation", "scaling", "context", "crop"}


def of(rows: Sequence[Row], kind: str, amount: float | None = None) -> list[Row]:
    return [row for row in rows if row.kind == kind and amount in (None, row.amount)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return tiny_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def rows(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return compare_geometry(bench, tmp_path_factory.mktemp("scratch"))


def test_every_kind_of_move_that_training_can_draw_is_measured_on_every_volume(
    rows: list[Row], bench: Workbench
) -> None:
    cases = {row.case for row in rows}
    assert cases <= {case.id for case in bench.study.split("val")}
    assert len(cases) == 2
    assert {row.kind for row in rows} == KINDS
    assert {row.amount for row in of(rows, "rotation")} == set(ANGLES)
    assert {row.amount for row in of(rows, "scaling")} == set(SCALES)
    assert all(row.voxels > 100 for row in rows)


def test_mind_is_exact_under_flips_and_quarter_turns_and_under_no_rotation(rows: list[Row]) -> None:
    for row in (*of(rows, "flip"), *of(rows, "quarter turn"), *of(rows, "rotation", 0.0)):
        assert row.max_error < 1e-4
        assert row.cka == pytest.approx(1, abs=1e-6)
    assert exact(rows)


def test_a_wider_rotation_moves_features_further_from_the_recomputed_ones(rows: list[Row]) -> None:
    errors = [mean_over(rows, lambda row: row.mean_error, "rotation", angle) for angle in ANGLES]
    assert errors == sorted(errors)
    assert errors[-1] > 0.1


def test_context_as_wide_as_the_locality_gives_the_stored_features_and_the_crop_alone_does_not(rows: list[Row]) -> None:
    assert all(row.max_error < 1e-3 for amount in (3, 4) for row in of(rows, "context", amount))
    assert all(row.mean_error > 0.01 for row in of(rows, "context", 0))
    assert all(row.mean_error > 0.01 for row in of(rows, "crop"))


def test_what_the_loader_does_is_what_is_measured(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Batches._stored_features
    monkeypatch.setattr(Batches, "_stored_features", lambda self, sample: torch.flip(replay(self, sample), (0,)))
    assert not exact(compare_geometry(bench, tmp_path))


def test_an_extractor_without_symmetry_is_told_of_and_so_is_what_training_does_not_draw(tmp_path: Path) -> None:
    changes = {"extractor": {"name": "random", "channels": 3}}
    bench = tiny_bench(tmp_path, features=changes, training={"augmentation": {"affine": False}})
    found = record_replay(bench, tmp_path / "analyses")
    assert found["exact"] is False
    assert found["volumes"] == 2
    assert found["said"][0].startswith("random has no exact symmetry: after a flip or a quarter turn")
    assert "The training of this experiment draws no affine maps." in found["said"]
    with Path(found["csv"]).open(newline="") as file:
        assert {row["kind"] for row in csv.DictReader(file)} == KINDS
    assert ElementTree.parse(found["figure"]).getroot().tag.endswith("svg")
    assert sorted(path.name for path in (tmp_path / "analyses").iterdir()) == ["replay.csv", "replay.svg"]


def test_a_folder_that_cannot_be_written_is_one_sentence(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write .*file/analyses.*--root"):
        record_replay(bench, tmp_path / "file" / "analyses")


REAL = {
    "hippocampus": {
        "spacing": [1.0, 1.0, 1.0],
        "crop": [32, 32, 32],
        "classes": ["background", "anterior", "posterior"],
    },
    "cardiac": {"spacing": [3.0, 3.0, 5.0], "crop": [64, 64, 16], "classes": ["background", "rv", "myocardium", "lv"]},
}


def real_study(data: Path, name: str, folder: Path) -> Path:
    """A study of one training case and three validation cases of a real one."""
    with (data / name / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {key: str(data / name / row[key]) for key in ("image", "label")}
    chosen = [row for row in rows if row["split"] == "train"][:1] + [row for row in rows if row["split"] == "val"][:3]
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(chosen)
    settings = {"name": name, "source": "manifest.csv", "intensity": "percentile", "orientation_augmentation": True}
    (folder / "study.yaml").write_text(yaml.safe_dump(settings | REAL[name]))
    return folder / "study.yaml"


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extractor", ["mind", "anatomix"])
@pytest.mark.parametrize("name", ["demo", *REAL])
def test_on_whole_studies_the_rows_of_the_page(data: Path, tmp_path: Path, name: str, extractor: str) -> None:
    options = {"weights": str(weights(tmp_path, "random"))} if extractor == "anatomix" else {}
    study = make_phantom_study(tmp_path / "study") if name == "demo" else real_study(data, name, tmp_path)
    features = {"extractor": {"name": extractor, **options}, "dtype": "float32"}
    rule = "target_validation" if name == "demo" else "source_validation"  # the real ones are shown at one site
    bench = tiny_bench(tmp_path, study=str(study), features=features, selection={"rule": rule})
    rows = compare_geometry(bench, tmp_path)
    if (name, extractor) == ("cardiac", "anatomix"):
        assert rows == []  # too few slices for a network with four downsamplings
        return
    assert exact(rows) == (extractor == "mind")
    for kind, amount in dict.fromkeys((row.kind, row.amount) for row in rows):
        found = of(rows, kind, amount)
        cka, mean = (sum(getattr(row, value) for row in found) / len(found) for value in ("cka", "mean_error"))
        worst = max(row.max_error for row in found)
        say(f"| {extractor}, {name} | {kind} {amount:g} | {cka:.3f} | {mean:.2g} | {worst:.2g} |")
