"""What other ways to choose would have given beside the chosen: the last checkpoint, the source rule, the oracle.

Nothing here chooses anything that is reported. The oracle looks at the test cases: it says how much a choice could have
gained at most among what was tested, and is no result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dropgen.config import Trial
from dropgen.platform.evaluation.kept import Checkpoint
from dropgen.platform.evaluation.metrics import Spread
from dropgen.platform.evaluation.results import display_name
from dropgen.tuning.choice import Group, choose_each, groups

WAYS = ("chosen", "last", "source_rule", "oracle")
SAID = {"chosen": "", "last": ", last checkpoint", "source_rule": ", source rule's checkpoint"}

# By trial key, what `evaluate_trial` returns.
Summaries = Mapping[str, Mapping[str, Any]]
Test = Callable[[Sequence[Trial], Checkpoint], Summaries]


@dataclass(frozen=True)
class Pick:
    """One way's model of a method: its hyperparameters and checkpoint, and each seed's Dice on unseen domains, 0..1."""

    name: str
    dice: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """`name, unseen, se, seeds`."""
        spread = Spread.of(self.dice)
        return {"name": self.name, "unseen": spread.mean, "se": spread.se, "seeds": len(self.dice)}


def columns(
    found: Sequence[tuple[Trial, dict[str, Any]]], tested: Summaries, test: Test, source_is_rule: bool
) -> list[dict[str, Any]]:
    """One entry per method: `method`, a pick or None for each of `WAYS`, and `of`: among how many the oracle chose.

    Args:
        found: Trained trials with their results.
        tested: Of those whose chosen checkpoint was tested.
        test: Predicts the held-out cases with another checkpoint of trials.
        source_is_rule: Whether the source rule is the experiment's own.
    """
    trials = {result["key"]: trial for trial, result in found}
    results = [result for _, result in found]
    chosen = choose_each(results)
    last = _test(chosen, trials, tested, test, "last")
    sourced = chosen if source_is_rule else _source_choice(results)
    source = {} if source_is_rule else _test(sourced, trials, tested, test, "source_rule")
    lines = []
    for group in chosen:
        candidates = [_pick(one, tested, "chosen") for one in _whole(results, group.method.name)]
        picks: dict[str, Pick | None] = {"chosen": _pick(group, tested, "chosen")}
        at_end = all(_is_chosen(result, "last") for result in group.results)
        picks["last"] = picks["chosen"] if at_end else _pick(group, last, "last")
        by_source = next((one for one in sourced if one.method.name == group.method.name), None)
        if by_source is None or source_is_rule:
            picks["source_rule"] = picks["chosen"] if source_is_rule else None
        else:
            picks["source_rule"] = _pick(by_source, source, "source_rule")
        every = [pick for pick in (*candidates, picks["last"], picks["source_rule"]) if pick is not None]
        picks["oracle"] = max(every, key=lambda pick: fmean(pick.dice), default=None)
        lines.append(
            {"method": group.method.name, "of": len(set(every))}
            | {way: pick and pick.to_json() for way, pick in ((way, picks[way]) for way in WAYS)}
        )
    return lines


def columns_note(lines: Sequence[Mapping[str, Any]]) -> str:
    """What must be known to read them."""
    missing = sorted({line["method"] for line in lines if line["source_rule"] is None})
    note = (
        "Mean Dice on unseen domains. Last checkpoint: the chosen hyperparameters after the last step. Source rule: "
        "hyperparameters and checkpoint as source_validation would choose them. Oracle: the best on the test cases "
        "themselves, of as many models as stand behind it; it is not a result."
    )
    if missing:
        note += (
            f" Without a source rule: {', '.join(missing)}; the study has no validation case in a training domain, or "
            "they were trained before selection.columns was set."
        )
    return note


def _source_choice(results: Sequence[dict[str, Any]]) -> list[Group]:
    """Of every method whose trials all know it: the hyperparameters with the best source validation Dice."""
    blind = {result["method"] for result in results if result["source_rule"] is None}
    return choose_each([
        result | {"val_dice": result["source_rule"]["val_dice"]} for result in results if result["method"] not in blind
    ])  # fmt: skip


def _test(
    chosen: Sequence[Group], trials: Mapping[str, Trial], tested: Summaries, test: Test, checkpoint: Checkpoint
) -> Summaries:
    """Tests a checkpoint of every result, but for those whose chosen one was tested and has the same weights."""
    results = [result for group in chosen for result in group.results]
    same = {result["key"] for result in results if result["key"] in tested and _is_chosen(result, checkpoint)}
    others = [trials[result["key"]] for result in results if result["key"] not in same]
    return {**{key: tested[key] for key in same}, **(test(others, checkpoint) if others else {})}


def _is_chosen(result: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    if checkpoint == "last":
        return bool(result["best_step"] == result["steps"])
    return result["source_rule"]["step"] == result["best_step"] and result["after_training"] is None


def _whole(results: Sequence[dict[str, Any]], method: str) -> list[Group]:
    """A method's hyperparameters that were trained with all of its seeds."""
    own = [group for group in groups(results) if group.method.name == method]
    most = max(len(group.results) for group in own)
    return [group for group in own if len(group.results) == most]


def _pick(group: Group, summaries: Summaries, checkpoint: Checkpoint) -> Pick | None:
    """None where a seed was not tested, or no unseen domain has labels."""
    dice = []
    for result in group.results:
        targets = summaries.get(result["key"], {}).get("target_dice", {}).values()
        known = [value for value in targets if value is not None]
        if not known:
            return None
        dice.append(fmean(known))
    return Pick(display_name(group.results[0]) + SAID[checkpoint], tuple(dice))
