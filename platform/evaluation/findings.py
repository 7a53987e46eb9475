"""What a comparison may claim, in sentences: the same in the terminal, the page, the text and the paper's tables."""

from __future__ import annotations

from collections.abc import Iterable

from dropgen.platform.evaluation.paired import Difference
from dropgen.platform.evaluation.results import ABSENT
from dropgen.platform.evaluation.significance import FEW, LEVEL, MOST_SOURCE_LOSS, Pair, Significance, smallest_p

VERDICTS = {
    "better": "better",
    "bought": f"not called better: loses more than {100 * MOST_SOURCE_LOSS:.0f} points on the source",
    "unchecked": "not called better: nothing was measured on the source",
    "open": "not told apart",
}


def findings(found: Significance) -> list[str]:
    """How many subjects and seeds there were, what follows from that, and who is ahead by how much."""
    return [_grounds(found), *_limits(found), _leader(found)]


def signed(value: float | None, digits: int = 1) -> str:
    """A difference of Dice in percent points, with its sign."""
    return ABSENT if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


def interval(between: Pair | Difference, digits: int = 1) -> str:
    """Its ends as `+1.2 to +4.0`, or a dash."""
    return ABSENT if between.low is None else f"{signed(between.low, digits)} to {signed(between.high, digits)}"


def chance(value: float | None, draws: int) -> str:
    """A share of the bootstrap, which cannot tell less than one draw from nothing."""
    if value is None:
        return ABSENT
    return f"< {1 / draws:g}" if value == 0 else f"{value:.3f}"


def _grounds(found: Significance) -> str:
    seeds = sorted(set(found.seeds.values()))
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"n = {found.n} subject{'' if found.n == 1 else 's'} of unseen domains, {many} "
        f"seed{'' if seeds == [1] else 's'} per method; every subject's cases were averaged first. Intervals hold 95% "
        f"of {found.draws} resamplings of subjects and seeds."
    )


def cautions(n: int, seeds: Iterable[int], intervals: bool) -> Iterable[str]:
    """What so many subjects, and numbers of seeds, cannot tell."""
    if n < FEW:
        yield f"Warning: {n} subjects are fewer than {FEW}; another sample of people may turn the order around."
    if set(seeds) == {1}:
        yield "With one seed per method the intervals know of subjects alone: another training may differ by more."
    if not intervals:
        yield "A domain with a single subject gives no interval."


def _limits(found: Significance) -> Iterable[str]:
    yield from cautions(found.n, found.seeds.values(), found.pairs[0].low is not None)
    if found.least_p > LEVEL:
        holm = "" if len(found.pairs) == 1 else f", {found.least_p:.3g} after Holm over {len(found.pairs)} pairs"
        yield (
            f"No signed-rank test: with n = {found.n} the smallest two-sided p is {smallest_p(found.n):.3g}{holm}, so "
            f"it could not fall below {LEVEL:g} whatever the outcome."
        )


def _leader(found: Significance) -> str:
    rivals = [pair for pair in found.pairs if pair.first == found.leader]
    closest = min(rivals, key=lambda pair: pair.gain)
    source = "not measured" if closest.source_gain is None else f"{signed(closest.source_gain)} points"
    return (
        f"{found.leader} has the highest mean on unseen domains; nearest is {closest.second}, {signed(closest.gain)} "
        f"points away (95% interval {interval(closest)}; source {source}): {VERDICTS[closest.verdict]}. The chance "
        f"that {found.leader} is not ahead of it is {chance(closest.not_better, found.draws)}."
    )
