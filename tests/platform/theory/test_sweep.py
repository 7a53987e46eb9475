"""docs/theory.md shows a run: its table is that of the raw rows, and the rows come out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.structured_dropout import StructuredDropout
from dropgen.platform.theory.figure import draw
from dropgen.platform.theory.sweep import SEEDS, TOYS, sweep, table, trained

DOCS = Path(__file__).resolve().parents[3] / "docs"
ROWS = json.loads((DOCS / "results" / "theory.json").read_text())["rows"]


def test_the_page_holds_the_table_of_its_rows() -> None:
    assert table(ROWS) in (DOCS / "theory.md").read_text()


@pytest.mark.parametrize("method", [DropGen(p=0.75), StructuredDropout(p=0.5, rescale=False)], ids=repr)
def test_a_row_of_the_page_comes_out_again(method: DropGen | StructuredDropout) -> None:
    row = trained(TOYS[0], method.name, method, SEEDS[0])
    (kept,) = (
        kept
        for kept in ROWS
        if (kept["predictor"], kept["image_mean"]) == (method.name, TOYS[0].image_mean)
        and (kept["p"], kept["seed"]) == (method.p, SEEDS[0])
    )
    for key in ("weight_image", "weight_stable", "loss"):
        assert row[key] == pytest.approx(kept[key], abs=1e-3)


def test_every_trained_row_ended_at_a_stationary_point() -> None:
    assert max(row["gradient"] for row in ROWS if "gradient" in row) < 1e-6


def test_a_small_sweep_has_every_predictor_and_can_be_drawn(tmp_path: Path) -> None:
    rows = sweep(seeds=(0,), crops=20)
    assert {row["predictor"] for row in rows} == {row["predictor"] for row in ROWS}
    draw(TOYS[0], rows).savefig(tmp_path / "theory.png")
    assert (tmp_path / "theory.png").stat().st_size > 10_000
