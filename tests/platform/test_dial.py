"""What training did not depend on is chosen on validation cases, once, and the bundle keeps it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dropgen.config import Component, Trial
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import train_trial
from dropgen.platform.training.dial import dial
from dropgen.platform.training.trial import finished
from tests_support.segmenters import make_segmenter
from tests_support.tiny import tiny_bench

ANY_P = Component.of("dropgen_any_p")


def p_of(segmenter: Segmenter) -> float:
    p = segmenter.spec.method.options["p"]
    assert isinstance(p, float)
    return p


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.1, 0.4, 0.3, 0.2), 0.25),
        ((0.4, 0.1, 0.4, 0.2), 0.0),
        ((math.nan, math.nan, 0.0, math.nan), 0.5),
        ((math.nan,) * 4, 0.0),
    ],
)
def test_the_first_of_the_best_wins_and_no_score_is_worse_than_any(scores: tuple[float, ...], chosen: float) -> None:
    dialled = dial(ANY_P, lambda: make_segmenter(ANY_P), lambda candidate: scores[int(4 * p_of(candidate))])
    assert dialled is not None
    assert dialled.options == {"p": chosen}
    assert p_of(dialled.segmenter) == chosen
    assert [options["p"] for options, _ in dialled.tried] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("component", [Component.of("dropgen_any_p", p=0.25), Component.of("dropgen", p=0.5)])
def test_what_is_given_or_trained_with_is_not_chosen(component: Component) -> None:
    def fail(*_: object) -> float:
        raise AssertionError("nothing is open")

    assert dial(component, fail, fail) is None  # type: ignore[arg-type]


def test_a_smaller_p_max_keeps_what_is_tried_within_it() -> None:
    component = Component.of("dropgen_any_p", p_max=0.6)
    dialled = dial(component, lambda: make_segmenter(component), p_of)
    assert dialled is not None
    assert [options["p"] for options, _ in dialled.tried] == pytest.approx([0, 0.2, 0.4, 0.6])


def test_a_trained_trial_tells_what_it_tried_and_its_bundle_holds_the_best(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": "dropgen_any_p"}])
    result = train_trial(bench, Trial(method=ANY_P, seed=1))
    tried = result["after_training"]["tried"]
    assert len(tried) == 4
    assert result["val_dice"] == max(dice for _, dice in tried)
    assert [result["after_training"]["options"], result["val_dice"]] in tried
    assert {"p": p_of(Segmenter.load(Path(result["bundle"])))} == result["after_training"]["options"]
    assert result["options"] == {}  # what it was trained with: the seeds stay one row


def test_a_trial_that_died_after_its_choice_chooses_the_same_again(tmp_path: Path) -> None:
    bench, trial = tiny_bench(tmp_path, methods=[{"name": "dropgen_any_p"}]), Trial(method=ANY_P, seed=1)
    first = train_trial(bench, trial)
    (bench.folder(trial) / "result.json").unlink()
    assert finished(bench.folder(trial)) is None
    again = train_trial(bench, trial)
    assert again["after_training"] == first["after_training"]
    assert again["val_dice"] == first["val_dice"]
