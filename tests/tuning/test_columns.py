"""What stands beside the chosen: other checkpoints of the right trials, tested only where the weights differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dropgen.config import Component, Trial
from dropgen.platform.evaluation.tables import columns_cells
from dropgen.tuning.columns import WAYS, columns, columns_note


def result(p: float, seed: int, val: float, source: float | None, best: int = 6, step: int = 3) -> dict[str, Any]:
    return {
        "method": "dropgen", "options": {"p": p}, "p": p, "seed": seed, "key": f"{p}-{seed}", "steps": 10,
        "best_step": best, "val_dice": val, "after_training": None,
        "source_rule": None if source is None else {"step": step, "val_dice": source},
    }  # fmt: skip


def found(*results: dict[str, Any]) -> list[tuple[Trial, dict[str, Any]]]:
    return [(Trial(method=Component.of("dropgen", p=one["p"]), seed=one["seed"]), one) for one in results]


class Checkpoints:
    """Gives every checkpoint its Dice and remembers what was asked for."""

    def __init__(self, **dice: dict[str, float]) -> None:
        self.dice = dice
        self.asked: list[tuple[str, str]] = []

    def __call__(self, trials: Sequence[Trial], checkpoint: str) -> dict[str, Any]:
        keys = [f"{trial.method.options['p']}-{trial.seed}" for trial in trials]
        self.asked += [(checkpoint, key) for key in keys]
        return {key: unseen(self.dice[checkpoint][key]) for key in keys}


def unseen(dice: float) -> dict[str, Any]:
    return {"target_dice": {"a": dice - 0.1, "b": dice + 0.1, "c": None}}


TESTED = {"0.25-1": unseen(0.9), "0.25-2": unseen(0.7), "0.5-1": unseen(0.5), "0.5-2": unseen(0.6)}
RESULTS = (
    result(0.25, 1, 0.3, 0.9), result(0.25, 2, 0.3, 0.9), result(0.5, 1, 0.8, 0.1), result(0.5, 2, 0.8, 0.1),
)  # fmt: skip


def test_every_way_has_its_own_hyperparameters_and_checkpoint() -> None:
    test = Checkpoints(last={"0.5-1": 0.4, "0.5-2": 0.4}, source_rule={"0.25-1": 0.2, "0.25-2": 0.4})
    (line,) = columns(found(*RESULTS), TESTED, test, source_is_rule=False)
    assert test.asked == [("last", "0.5-1"), ("last", "0.5-2"), ("source_rule", "0.25-1"), ("source_rule", "0.25-2")]
    assert {way: (line[way]["name"], round(line[way]["unseen"], 6), line[way]["seeds"]) for way in WAYS} == {
        "chosen": ("DropGen p = 0.5", 0.55, 2),
        "last": ("DropGen p = 0.5, last checkpoint", 0.4, 2),
        "source_rule": ("DropGen p = 0.25, source rule's checkpoint", 0.3, 2),
        "oracle": ("DropGen p = 0.25", 0.8, 2),
    }
    assert line["of"] == 4
    (cells,) = columns_cells([line])
    assert cells[1] == "55.0 ± 5.0 (DropGen p = 0.5)"
    assert cells[4].endswith("(DropGen p = 0.25) of 4")


def test_the_source_rule_chooses_among_all_that_was_trained_not_only_among_what_was_tested() -> None:
    tested = {key: TESTED[key] for key in ("0.5-1", "0.5-2")}
    test = Checkpoints(last={"0.5-1": 0.4, "0.5-2": 0.4}, source_rule={"0.25-1": 0.2, "0.25-2": 0.4})
    (line,) = columns(found(*RESULTS), tested, test, source_is_rule=False)
    assert line["source_rule"]["name"].startswith("DropGen p = 0.25")
    assert (line["oracle"]["name"], line["of"]) == ("DropGen p = 0.5", 3)


def test_the_same_weights_are_not_tested_again() -> None:
    test = Checkpoints()
    same = result(0.5, 1, 0.8, 0.5, best=10, step=10)
    (line,) = columns(found(same), {"0.5-1": unseen(0.5)}, test, source_is_rule=False)
    assert test.asked == []
    assert line["last"] == line["chosen"]
    assert line["source_rule"]["unseen"] == line["chosen"]["unseen"]


def test_under_the_source_rule_itself_its_column_is_the_chosen_one() -> None:
    test = Checkpoints(last={"0.5-1": 0.4, "0.5-2": 0.4})
    blind = [one | {"source_rule": None} for one in RESULTS]
    (line,) = columns(found(*blind), TESTED, test, source_is_rule=True)
    assert line["source_rule"] == line["chosen"]
    assert {checkpoint for checkpoint, _ in test.asked} == {"last"}


def test_a_method_that_does_not_know_the_source_rule_everywhere_has_no_such_column_and_that_is_said() -> None:
    test = Checkpoints(last={"0.5-1": 0.4, "0.5-2": 0.4})
    lines = columns(found(*RESULTS[:3], RESULTS[3] | {"source_rule": None}), TESTED, test, source_is_rule=False)
    assert lines[0]["source_rule"] is None
    assert "Without a source rule: dropgen; the study has no validation case" in columns_note(lines)
    assert columns_cells(lines)[0][3] == "–"


def test_hyperparameters_with_fewer_seeds_are_no_candidates_of_the_oracle() -> None:
    test = Checkpoints(last={"0.5-1": 0.4, "0.5-2": 0.4})
    blind = [one | {"source_rule": None} for one in (RESULTS[0], *RESULTS[2:])]
    (line,) = columns(found(*blind), TESTED, test, source_is_rule=True)
    assert line["oracle"]["name"] == "DropGen p = 0.5"
