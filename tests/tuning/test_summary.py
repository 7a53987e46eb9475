from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.config import Experiment, validate
from dropgen.platform.evaluation.results import group_rows, ranking
from dropgen.tuning.choice import champion, choose, choose_each, keys_to_test
from dropgen.tuning.summary import absent_rows, adapted_rows, headline, ranked, seed_notes, table_rows
from dropgen.tuning.table import markdown, terminal

Result = dict[str, Any]


def result(method: str, p: float | None, seed: int, val: float, converged: bool = True) -> Result:
    options = {} if p is None else {"p": p}
    return {
        "label": f"{method} {p} {seed}", "method": method, "options": options, "p": p, "seed": seed,
        "key": f"{method}-{p}-{seed}", "steps": 10, "best_step": 10, "val_dice": val, "converged": converged,
        "seconds": 1.0, "data_wait": 0.01 * seed, "commit": "abc", "folder": f"/trials/{method}-{p}-{seed}",
    }  # fmt: skip


def evaluation(source: float | None, **targets: float | None) -> dict[str, Any]:
    return {"source_dice": source, "target_dice": targets}


def rows_of(*entries: tuple[Result, dict[str, Any]]) -> list[dict[str, Any]]:
    return table_rows([found for found, _ in entries], {found["key"]: tested for found, tested in entries})


ERM = (result("erm", None, 1, 0.5), evaluation(0.9, a=0.3, b=0.5))
REP = (result("rep_only", None, 1, 0.7), evaluation(0.8, a=0.5, b=0.5))
P0 = (result("dropgen", 0, 1, 0.6), evaluation(0.9, a=0.4, b=0.4))
P5 = (result("dropgen", 0.5, 1, 0.8), evaluation(0.85, a=0.8, b=0.6))


def test_the_mean_over_seeds_chooses_and_the_best_seed_is_the_champion() -> None:
    results = [
        result("dropgen", 0.25, 1, 0.9), result("dropgen", 0.25, 2, 0.1),
        result("dropgen", 0.5, 1, 0.6), result("dropgen", 0.5, 2, 0.7),
    ]  # fmt: skip
    assert choose(results).method.label == "dropgen p=0.5"
    assert champion(results)["key"] == "dropgen-0.5-2"


def test_hyperparameters_with_fewer_seeds_do_not_compete() -> None:
    results = [result("dropgen", 0.25, 1, 0.99), result("dropgen", 0.5, 1, 0.6), result("dropgen", 0.5, 2, 0.7)]
    assert choose(results).method.label == "dropgen p=0.5"


def test_a_better_baseline_is_not_the_champion_where_dropgen_takes_part_but_is_alone() -> None:
    assert champion([ERM[0], REP[0] | {"val_dice": 0.99}, P5[0]])["method"] == "dropgen"
    assert champion([ERM[0], REP[0]])["method"] == "rep_only"


@given(st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5]), st.integers(1, 3), st.floats(0, 1)), min_size=1))
def test_selected_marks_exactly_the_rows_of_one_p(draws: list[tuple[float, int, float]]) -> None:
    unique = {(p, seed): result("dropgen", p, seed, val) for p, seed, val in draws}
    results = [ERM[0], *unique.values()]
    rows = table_rows(results, {found["key"]: evaluation(0.5, a=0.5) for found in results})
    chosen = {row["p"] for row in rows if row["selected"]}
    assert len(chosen) == 1
    assert all(row["selected"] == (row["method"] == "dropgen" and row["p"] in chosen) for row in rows)


def test_rows_carry_p_for_dropgen_alone_and_dice_per_unseen_domain() -> None:
    rows = rows_of(ERM, P0, P5)
    assert [row["p"] for row in rows] == [None, 0, 0.5]
    assert [row["selected"] for row in rows] == [False, False, True]
    assert rows[2]["target_dice"] == {"a": 0.8, "b": 0.6}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ((ERM, REP, P0, P5), "DropGen p = 0.5 gains 30.0 Dice points over ERM (40.0 to 70.0) on the mean of 2"),
        ((ERM, REP, P0), "The chosen p is 0"),
        ((ERM, REP, P0), "RepOnly has 50.0 Dice against 40.0 of DropGen p = 0"),
        ((ERM, REP, P0), "one seed, but is not called better: on the source it loses 10.0 points."),
        ((ERM, P5), "one seed, but is not called better: on the source it loses 5.0 points."),
        ((ERM, (P5[0], evaluation(0.9, a=0.1, b=0.1))), "ERM wins with 40.0 Dice against 10.0"),
        ((REP, P5), "DropGen p = 0.5 reaches 70.0 Dice"),
        ((ERM, REP), "RepOnly has the best validation Dice, 70.0"),
        (((P5[0], evaluation(0.9, a=None)),), "no unseen domain has labels"),
    ],
)
def test_the_headline_says_who_won_whoever_it_was(entries: Any, says: str) -> None:
    assert says in headline(rows_of(*entries))


def test_the_headline_counts_seeds() -> None:
    second = (result("dropgen", 0.5, 2, 0.8), evaluation(0.85, a=0.6, b=0.6))
    assert "2 seeds" in headline(rows_of(ERM, P5, second))
    assert "one seed" in headline(rows_of(ERM, P5))


def test_the_table_shows_mean_and_standard_error_and_what_has_not_converged() -> None:
    late = (result("dropgen", 0.5, 2, 0.8, converged=False), evaluation(0.85, a=0.6, b=0.6))
    rows = rows_of(ERM, P5, late)
    text = terminal(rows)
    assert "70.0 ± 10.0" in text  # a: 80 and 60
    assert "not converged: 1 of 2" in text
    page = page_of(rows)
    assert "| DropGen p = 0.5 (chosen) | 80.0 ± 0.0 | 85.0 ± 0.0 | 70.0 ± 10.0 | 60.0 ± 0.0 | 65.0 ± 5.0 | 1 |" in page
    assert "| not converged: 1 of 2 | 0.0 |" in page
    assert "at most 2.0% of their time spent waiting for data" in page
    assert "| ERM (1 of 2 seeds) | 50.0 | 90.0 | 30.0 | 50.0 | 40.0 | 2 | yes | 0.0 |" in page
    assert "It works." in page
    assert "seeds 1, 2" in page


def page_of(rows: list[dict[str, Any]], absent: Any = (), notes: Any = ()) -> str:
    told = {"experiment": "demo", "headline": "It works.", "computed_seconds": {"search": 10.0}}
    touches = {"count": 0, "said": "Nobody looked."}
    return markdown({**told, "table": rows, "absent": absent, "notes": notes, "touches": touches})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_rank_counts_who_is_printed_better_and_equals_share_the_best(unseen: list[float]) -> None:
    entries = [(result("erm", i, 1, 0.5), evaluation(0.5, a=dice)) for i, dice in enumerate(unseen)]
    found = [place.rank for place in ranking(group_rows(rows_of(*entries)))]
    printed = [float(f"{100 * dice:.1f}") for dice in unseen]
    assert min(found) == 1
    for rank, own in zip(found, printed, strict=True):
        assert rank == 1 + sum(other > own for other in printed)


def test_a_table_by_rank_begins_with_the_best_and_ends_with_what_has_none() -> None:
    blind = (result("rep_only", None, 1, 0.9), evaluation(0.9, a=None, b=None))
    assert [row["method"] for row in ranked(rows_of(blind, ERM, P5))] == ["dropgen", "erm", "rep_only"]


ADAPTED = {
    "tent": {
        "erm-None-1": {
            "source_dice": 0.8, "target_dice": {"a": 0.6, "b": 0.6},
            "adaptation": {"name": "tent", "options": {"steps": 5}, "val_dice": 0.55, "seconds": 60.0},
        },
        "dropgen-0-1": {"unavailable": "segmenter has no BatchNorm layer to adapt"},
    }
}  # fmt: skip


def test_a_test_time_method_has_a_line_of_its_own_that_is_never_the_chosen_one() -> None:
    rows = rows_of(ERM, P0)
    rows += adapted_rows(rows, ADAPTED)
    assert [row["method"] for row in rows] == ["erm", "dropgen", "erm+tent"]
    assert rows[2]["evaluation"].endswith("erm-None-1/evaluation-tent")
    assert "| ERM + TENT | 55.0 | 80.0 | 60.0 | 60.0 | 60.0 | 1 | yes | 1.0 |" in page_of(rows)
    assert [group.name for group in group_rows(rows) if group.selected] == ["DropGen p = 0"]


def test_what_diverged_and_what_was_refused_are_lines_with_their_reason() -> None:
    rows = rows_of(ERM, P0)
    lost = {"label": "gin seed=2", "method": "gin", "options": {}, "seed": 2, "step": 40, "why": "loss is nan"}
    absent = absent_rows(rows, [lost], ADAPTED)
    assert "| GIN, seed 2 | – | – | – | – | – | – | diverged at step 40 | – |" in page_of(rows, absent)
    assert "DropGen + TENT p = 0, seed 1: unavailable: segmenter has no BatchNorm" in terminal(rows, absent)
    columns = {line.count("|") for line in page_of(rows, absent).splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_gin_is_told_as_published_beside_its_mean() -> None:
    entries = [
        (result("gin", None, seed, val), evaluation(0.9, a=dice))
        for seed, val, dice in ((1, 0.5, 0.7), (2, 0.6, 0.3), (3, 0.4, 0.8))
    ]
    rows = rows_of(ERM, *entries)
    (note,) = seed_notes(rows)
    assert "GIN is published as the best of its seeds on validation, here seed 2 with 30.0" in note
    assert "| GIN | 50.0 ± 5.8 | 90.0 ± 0.0 | 60.0 ± 15.3 |" in page_of(rows, notes=[note])
    assert note in page_of(rows, notes=[note])


def test_of_every_method_the_best_on_validation_is_tested_and_what_a_test_time_method_adapts() -> None:
    results = [
        result("erm", None, 1, 0.5), result("mixup", 0.25, 1, 0.4), result("mixup", 0.5, 1, 0.6),
        result("dropgen", 0, 1, 0.1), result("dropgen", 0.25, 1, 0.2), result("dropgen", 0.5, 1, 0.3),
    ]  # fmt: skip
    assert [group.method.label for group in choose_each(results)] == ["erm", "mixup p=0.5", "dropgen p=0.5"]
    plain = {"name": "x", "study": "s.yaml", "selection": {"rule": "target_validation"}}
    chosen = validate(Experiment, plain | {"adaptations": [{"name": "tent"}], "search": {"test": "chosen"}}, "x")
    assert keys_to_test(chosen, results) == {"erm-None-1", "mixup-0.5-1", "dropgen-0-1", "dropgen-0.5-1"}
    assert len(keys_to_test(validate(Experiment, plain, "x"), results)) == 6
