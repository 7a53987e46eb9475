"""Early stopping beside the whole grid: ranks of known curves, and what two searches on disk say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.__main__ import main
from dropgen.errors import ConfigError
from dropgen.platform.evaluation.early_stop import agreement, early_stop_note, judge

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "dropgen" / "schema.json").read_text())
STEPS, SEEDS, RUNGS = 90, (1, 2, 3), [10, 30]
# p: Dice at 10, 30 and 90 steps with the first seed. The fast one is stopped late, the slow one early: curves cross.
CURVES = {0.0: (0.5, 0.60, 0.62), 0.25: (0.4, 0.65, 0.80), 0.5: (0.1, 0.50, 0.81), 0.75: (0.2, 0.3, 0.4)}


def curve(p: float) -> list[list[float]]:
    return [[step, dice] for step, dice in zip((10, 30, 90), CURVES[p], strict=True)]


def grid(seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    return [
        {"method": "dropgen", "options": {"p": p}, "p": p, "seed": seed, "steps": STEPS,
         "val_dice": CURVES[p][-1] + 0.02 * (seed - seeds[0]), "curve": {"loss": [], "validation": curve(p)}}
        for p in CURVES
        for seed in seeds
    ]  # fmt: skip


def record() -> dict[str, Any]:
    ends = {0.0: (30, True), 0.25: (90, False), 0.5: (10, True), 0.75: (10, True)}
    trials = [
        {"options": {"p": p}, "steps": steps, "val_dice": 0.5, "stopped": stopped, "curve": [] if stopped else curve(p)}
        for p, (steps, stopped) in ends.items()
    ]
    line = {"method": "dropgen", "chosen": {"p": 0.25}, "trials": trials}
    return {"scheduler": "asha", "seed": 1, "steps": STEPS, "rungs": RUNGS, "methods": [line]}


def test_steps_and_the_choice_are_judged_by_the_grid_that_nothing_stopped() -> None:
    (found,) = judge(grid(), record())
    assert (found.steps, found.grid_steps) == (140, 360)
    assert (found.chosen, found.best) == ("DropGen p = 0.25", "DropGen p = 0.5")
    assert found.best_dice - found.chosen_dice == pytest.approx(0.01)
    assert found.se == pytest.approx(0.02 / 3**0.5)
    assert found.within is True


def test_a_choice_farther_than_one_standard_error_is_told_and_one_seed_judges_nothing() -> None:
    far = record()
    far["methods"][0]["chosen"] = {"p": 0.0}
    assert judge(grid(), far)[0].within is False
    (alone,) = judge(grid((1,)), record())
    assert (alone.se, alone.within) == (None, None)


def test_ranks_are_those_of_the_best_so_far_against_the_best_of_all() -> None:
    (found,) = judge(grid(), record())
    first, second = found.rungs
    assert [(rung.step, rung.n) for rung in found.rungs] == [(10, 4), (30, 4)]
    # Ranks at 10: 4 3 1 2; at 30: 3 4 2 1; at the end: 2 3 4 1.
    assert first.spearman == pytest.approx(1 - 6 * (4 + 0 + 9 + 1) / 60)
    assert second.spearman == pytest.approx(1 - 6 * (1 + 1 + 4 + 0) / 60)
    assert second.kendall == pytest.approx((4 - 2) / 6)


@given(st.lists(st.integers(1, 100), min_size=3, max_size=8, unique=True))
def test_curves_that_never_cross_are_in_perfect_order_at_every_rung(final: list[int]) -> None:
    found = agreement([[[10, dice / 300], [30, dice / 200], [90, dice / 100]] for dice in final], RUNGS)
    assert [rung.spearman for rung in found] == pytest.approx([1, 1])
    assert [rung.kendall for rung in found] == pytest.approx([1, 1])


def test_fewer_than_three_trials_or_equal_ones_have_no_order() -> None:
    assert [rung.spearman for rung in agreement([[[10, 0.1], [90, 0.2]]] * 2, RUNGS)] == [None, None]
    assert [rung.kendall for rung in agreement([[[10, 0.0], [90, 0.2]]] * 4, RUNGS)] == [None, None]


def test_a_rung_sees_the_first_validation_at_or_after_it_and_none_later() -> None:
    curves = [[[20, one], [40, two], [90, 0.9 - one]] for one, two in ((0.1, 0.9), (0.2, 0.8), (0.3, 0.7))]
    at_20, at_40 = agreement(curves, [10, 21])
    assert at_20.spearman == pytest.approx(-1)  # the slowest is best in the end
    assert at_40.spearman == pytest.approx(1)


def test_one_search_alone_tells_its_steps_and_ranks_only_what_it_finished() -> None:
    (said,) = early_stop_note(record())
    assert said.startswith("ASHA spent 140 of 360 steps (39%) on DropGen's 4 settings with seed 1 and stopped 3.")
    assert "among the 1 that it finished, by step: 10: –, 30: –" in said


def test_a_grid_without_a_setting_or_with_other_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the grid has no DropGen p = 0\.5 with seed 1"):
        judge([result for result in grid() if result["p"] != 0.5], record())
    with pytest.raises(ConfigError, match="has 45 steps in the grid and 90 under asha"):
        judge([result | {"steps": 45} for result in grid()], record())


def write_summary(folder: Path, early_stop: dict[str, Any] | None) -> None:
    rows = []
    for index, result in enumerate(grid()):
        trial = folder / "trials" / str(index)
        trial.mkdir(parents=True)
        (trial / "result.json").write_text(json.dumps(result))
        rows.append({"folder": str(trial), "adaptation": None})
    report = str(folder / "report.html")
    (folder / "summary.json").write_text(json.dumps({"table": rows, "report": report, "early_stop": early_stop}))


def test_compare_prints_a_page_of_two_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_summary(tmp_path / "grid", None)
    write_summary(tmp_path / "stopped", record())
    (tmp_path / "grid").rename(tmp_path / "moved")
    command = ["compare", "moved", "stopped", "--search", "--root", str(tmp_path)]
    assert main(command) == 0
    page = capsys.readouterr().out
    assert page.startswith("# ASHA beside the whole grid\n")
    assert "ASHA used 140 of the grid's 360 steps (39%) with the first seed." in page
    assert "the choice is at most one standard error below it." in page
    assert "| 10 | 4 | −0.40 | −0.33 |" in page
    assert main([*command, "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), {**SCHEMA["$defs"]["compare"], "$defs": SCHEMA["$defs"]})


def test_two_whole_grids_are_no_comparison_of_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        write_summary(tmp_path / name, None)
    assert main(["compare", "one", "other", "--search", "--root", str(tmp_path)]) == 2
    assert "search.scheduler=asha" in capsys.readouterr().err
