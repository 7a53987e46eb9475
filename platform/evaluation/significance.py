"""Who may be called better, and on what grounds: every pair of methods on the same subjects.

A subject's cases are averaged first (`results.subject_scores`), so n counts people. Each method takes part as the
hyperparameters that validation chose.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon
from statsmodels.stats.multitest import multipletests

from dropgen.platform.evaluation.bootstrap import DRAWS, Observations, bootstrap
from dropgen.platform.evaluation.results import Group, chosen_of_each, scored_cases, subject_scores

LEVEL = 0.05
MOST_SOURCE_LOSS = 0.02  # Dice; whoever loses more at home has bought what it gains abroad
FEW = 50  # subjects; below, intervals are wide and the tail of the bootstrap is rough
SEED = 0  # of the bootstrap, so that a page can be made again

Key = tuple[str, str]  # domain, subject


@dataclass(frozen=True)
class Pair:
    """Two methods, the one with the higher mean on unseen domains first. Dice in 0..1.

    Attributes:
        gain: By how much it is higher.
        low: Lower end of the 95% interval of the gain; None where a domain has a single subject.
        high: Its upper end.
        not_better: The share of the bootstrap in which the first is not ahead, the chance that it is no winner.
        source_gain: The same difference on the source; None where nothing was measured there.
        p: Two-sided Wilcoxon signed-rank over subjects, after Holm; None where no outcome could be significant.
        verdict: "better", "bought" (it loses too much on the source), "unchecked" (no source was measured), or "open".
    """

    first: str
    second: str
    gain: float
    low: float | None
    high: float | None
    not_better: float | None
    source_gain: float | None
    p: float | None
    verdict: str


@dataclass(frozen=True)
class Significance:
    """What the pairs stand on, and how the methods rank within the subjects.

    Attributes:
        n: Subjects on unseen domains.
        seeds: By method.
        least_p: The smallest p that the signed-rank test could give the first of all pairs, Holm included.
        mean_ranks: By method, 1 is best; ties within a subject share the mean rank, as Friedman's test wants.
        friedman_p: That all methods are alike; None for fewer than three.
        critical: Mean ranks closer than this are not told apart at 5% (Nemenyi); None for fewer than two subjects.
    """

    n: int
    seeds: Mapping[str, int]
    draws: int
    least_p: float
    mean_ranks: Mapping[str, float]
    friedman_p: float | None
    critical: float | None
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"pairs": [asdict(pair) for pair in self.pairs]}

    @property
    def leader(self) -> str:
        """The method with the highest mean on unseen domains."""
        losers = {pair.second for pair in self.pairs}
        return next(name for name in self.seeds if name not in losers)


def may_be_called_better(gain: float, source_gain: float | None) -> bool:
    """Whether a gain on unseen domains counts: at most 2 points may be lost on the source, which must be measured."""
    return gain > 0 and source_gain is not None and round(source_gain, 6) >= -MOST_SOURCE_LOSS


def smallest_p(n: int, pairs: int = 1) -> float:
    """The smallest two-sided p of a signed-rank test of n subjects, 2 / 2^n, times the pairs that Holm counts."""
    return min(1.0, pairs * 2.0 ** (1 - n))


def significance(groups: Sequence[Group], generator: np.random.Generator | None = None) -> Significance | None:
    """Compares what validation chose of each method.

    Args:
        groups: Lines of the table; their evaluations are read from disk.
        generator: Of the bootstrap.

    Returns:
        None where there are fewer than two methods, or no subject of an unseen domain that all were scored on.
    """
    methods = [group for group in chosen_of_each(groups) if group.spread("unseen").mean is not None]
    tables = {
        group.name: [subject_scores(scored_cases(Path(row["evaluation"]))) for row in group.rows] for group in methods
    }
    domains = {name for group in methods for row in group.rows for name in row["target_dice"]}
    shared = set.intersection(*(set(table) for rows in tables.values() for table in rows)) if tables else set()
    unseen = sorted(key for key in shared if key[0] in domains)
    if len(methods) < 2 or not unseen:
        return None
    at_home = sorted(key for key in shared if key[0] not in domains)
    scores, seen = _scores(tables, unseen), Observations.of(unseen)
    people = len(set(seen.subjects.tolist()))
    names, means = list(tables), [float(each.mean(axis=0) @ seen.weights) for each in scores]
    source = [float(each.mean(axis=0) @ Observations.of(at_home).weights) for each in _scores(tables, at_home)] if (
        at_home
    ) else None  # fmt: skip
    drawn = bootstrap(scores, seen, generator or np.random.default_rng(SEED))
    by_subject = np.stack([_by_subject(each.mean(axis=0), seen.subjects) for each in scores])
    order = [
        (one, other) if means[one] >= means[other] else (other, one)
        for one, other in itertools.combinations(range(len(names)), 2)
    ]
    least = smallest_p(people, len(order))
    adjusted = _wilcoxon(by_subject, order) if least <= LEVEL else [None] * len(order)
    pairs = tuple(
        _pair((names[a], names[b]), means[a] - means[b], None if source is None else source[a] - source[b],
              drawn[:, a] - drawn[:, b] if seen.fewest > 1 else None, p)
        for (a, b), p in zip(order, adjusted, strict=True)
    )  # fmt: skip
    ranks = rankdata(-by_subject.round(6), axis=0).mean(axis=1)
    return Significance(
        n=people,
        seeds={group.name: len(group.rows) for group in methods},
        draws=DRAWS,
        least_p=least,
        mean_ranks=dict(zip(names, map(float, ranks), strict=True)),
        friedman_p=_friedman(by_subject),
        critical=critical_difference(len(names), people) if people > 1 else None,
        pairs=pairs,
    )


def critical_difference(methods: int, subjects: int) -> float:
    """By how much two mean ranks must differ at 5%: Nemenyi's test, Demsar, JMLR 2006, equation 6."""
    quantile = studentized_range.ppf(1 - LEVEL, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * subjects)))


def _scores(tables: Mapping[str, Sequence[Mapping[Key, float]]], keys: Sequence[Key]) -> list[np.ndarray]:
    return [np.array([[table[key] for key in keys] for table in rows]) for rows in tables.values()]


def _by_subject(values_o: np.ndarray, subjects_o: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(subjects_o, values_o) / np.bincount(subjects_o))


def _pair(
    names: tuple[str, str], gain: float, source_gain: float | None, drawn: np.ndarray | None, p: float | None
) -> Pair:
    low, high = (None, None) if drawn is None else map(float, np.percentile(drawn, [2.5, 97.5]))
    not_better = None if drawn is None else float(np.mean(drawn <= 0))
    return Pair(*names, gain, low, high, not_better, source_gain, p, _verdict(gain, low, source_gain))


def _verdict(gain: float, low: float | None, source_gain: float | None) -> str:
    if low is None or low <= 0:
        return "open"
    if source_gain is None:
        return "unchecked"
    return "better" if may_be_called_better(gain, source_gain) else "bought"


def _wilcoxon(by_subject: np.ndarray, order: Sequence[tuple[int, int]]) -> list[float]:
    raw = []
    for one, other in order:
        differences = (by_subject[one] - by_subject[other]).round(6)  # as the tables on disk
        raw.append(float(wilcoxon(differences).pvalue) if differences.any() else 1.0)
    return [float(p) for p in multipletests(raw, method="holm")[1]]


def _friedman(by_subject: np.ndarray) -> float | None:
    if len(by_subject) < 3 or by_subject.shape[1] < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # methods that are alike everywhere divide by 0
        p = float(friedmanchisquare(*by_subject.round(6)).pvalue)
    return p if np.isfinite(p) else 1.0
