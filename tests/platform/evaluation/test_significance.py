from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from dropgen.platform.evaluation.bootstrap import Observations, bootstrap
from dropgen.platform.evaluation.findings import findings
from dropgen.platform.evaluation.latex import tables
from dropgen.platform.evaluation.rank_plot import cliques
from dropgen.platform.evaluation.results import average_ranks, group_rows, scored_cases, subject_scores
from dropgen.platform.evaluation.significance import (
    Significance,
    critical_difference,
    may_be_called_better,
    significance,
    smallest_p,
)

Cell = tuple[str, str, float]  # domain, subject, Dice of the only class


def trial(folder: Path, method: str, seed: int, cells: list[Cell], val: float = 0.5, **more: Any) -> dict[str, Any]:
    """A row of the table whose evaluation, as it was before the other measures, lies on disk."""
    evaluation = folder / f"{method}-{seed}-{val}" / "evaluation"
    evaluation.mkdir(parents=True)
    with (evaluation / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("case", "subject", "domain", "split", "class", "dice"))
        for i, (domain, subject, dice) in enumerate(cells):
            rows.writerow((f"c{i}", subject, domain, "test", "organ", f"{dice:.6f}"))
    domains = sorted({domain for domain, _, _ in cells} - {"home"})
    target = {name: float(np.mean([dice for domain, _, dice in cells if domain == name])) for name in domains}
    home = [dice for domain, _, dice in cells if domain == "home"]
    return {
        "method": method, "p": None, "options": {"val": val}, "seed": seed, "val_dice": val, "selected": False,
        "source_dice": float(np.mean(home)) if home else None, "target_dice": target, "evaluation": str(evaluation),
        "adaptation": None, **more,
    }  # fmt: skip


def compared(folder: Path, n: int, gain: float, home: tuple[float, float] | None = (0.9, 0.9)) -> Significance:
    """Two methods on n subjects, the second ahead by about `gain`."""
    noise = np.random.default_rng(1).normal(0, 0.01, (2, n))
    rows = []
    for method, add, here in (("erm", 0.0, 0), ("rep_only", gain, 1)):
        cells = [("new", f"s{i:02}", 0.5 + add + noise[here, i]) for i in range(n)]
        rows.append(trial(folder, method, 1, cells + ([("home", "h", home[here])] if home else [])))
    found = significance(group_rows(rows))
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_bootstrap_is_the_loop_that_it_stands_for(seed: int) -> None:
    """Against draws made one at a time, with plain loops: means and spreads agree as far as chance lets them."""
    generator = np.random.default_rng(seed)
    subjects, domains = np.array([0, 1, 2, 0, 1, 3]), np.array([0, 0, 0, 1, 1, 1])
    scores = [generator.random((2, 6)), generator.random((3, 6))]
    found = bootstrap(scores, Observations(subjects, domains), generator, 4000)
    strata = [[0, 1], [2], [3]]
    slow = np.empty((1500, 2))
    for draw in range(len(slow)):
        people = [who for members in strata for who in generator.choice(members, len(members))]
        for m, each in enumerate(scores):
            trained = generator.choice(len(each), len(each))
            means = []
            for domain in (0, 1):
                taken = [o for who in people for o in range(6) if subjects[o] == who and domains[o] == domain]
                means.append(np.mean([each[s, o] for s in trained for o in taken]))
            slow[draw, m] = np.mean(means)
    error = 5 * slow.std(axis=0) * np.sqrt(1 / 4000 + 1 / 1500)
    assert (np.abs(found.mean(axis=0) - slow.mean(axis=0)) <= error + 1e-12).all()
    np.testing.assert_allclose(found.std(axis=0), slow.std(axis=0), rtol=0.15)
    np.testing.assert_allclose(np.cov(found.T)[0, 1], np.cov(slow.T)[0, 1], atol=0.2 * slow.std(axis=0).prod())


def test_subjects_are_paired_so_that_what_all_find_hard_cancels() -> None:
    hard = np.random.default_rng(3).random((1, 30))
    drawn = bootstrap([hard, hard + 0.1], Observations(np.arange(30), np.zeros(30, int)), np.random.default_rng(0), 500)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 0.1)
    assert drawn[:, 0].std() > 0.02


@given(st.floats(0.001, 1), st.floats(-1, 1))
def test_who_loses_more_than_two_points_on_the_source_is_not_called_better(gain: float, source: float) -> None:
    if abs(source + 0.02) > 1e-5:
        assert may_be_called_better(gain, source) == (source > -0.02)
    assert may_be_called_better(gain, -0.02)
    assert not may_be_called_better(gain, None)
    assert not may_be_called_better(-gain, source)


@pytest.mark.parametrize(
    ("home", "verdict"),
    [((0.9, 0.9), "better"), ((0.9, 0.881), "better"), ((0.9, 0.87), "bought"), (None, "unchecked")],
)
def test_the_verdict_follows_the_source(tmp_path: Path, home: tuple[float, float] | None, verdict: str) -> None:
    found = compared(tmp_path, 12, 0.2, home)
    (pair,) = found.pairs
    assert (pair.first, pair.verdict) == (found.leader, verdict)
    assert ("not called better" in findings(found)[-1]) == (verdict != "better")


def test_an_interval_around_zero_tells_nobody_apart(tmp_path: Path) -> None:
    (pair,) = compared(tmp_path, 12, 0.0).pairs
    assert pair.low is not None
    assert pair.low < 0 < pair.gain
    assert pair.verdict == "open"
    assert pair.not_better is not None
    assert pair.not_better > 0.025


def test_five_subjects_cannot_be_significant_and_the_page_says_so(tmp_path: Path) -> None:
    assert smallest_p(5) == 0.0625 == wilcoxon([1.0, 2, 3, 4, 5]).pvalue
    found = compared(tmp_path / "five", 5, 0.3)
    assert found.pairs[0].p is None
    assert "n = 5 the smallest two-sided p is 0.0625" in " ".join(findings(found))
    six = compared(tmp_path / "six", 6, 0.3)
    assert six.pairs[0].p == pytest.approx(0.03125)
    assert "No signed-rank" not in " ".join(findings(six))


def test_few_subjects_and_single_seeds_are_warned_of(tmp_path: Path) -> None:
    few, many = " ".join(findings(compared(tmp_path / "a", 49, 0.1))), findings(compared(tmp_path / "b", 50, 0.1))
    assert "Warning: 49 subjects are fewer than 50" in few
    assert "one seed" in few
    assert not any(line.startswith("Warning") for line in many)
    assert "n = 50 subjects" in many[0]


def test_domains_of_a_single_subject_give_no_interval_and_so_no_winner(tmp_path: Path) -> None:
    rows = [trial(tmp_path, name, 1, [(f"site{i}", f"s{i}", dice) for i in range(6)] + [("home", "h", 0.9)])
            for name, dice in (("erm", 0.4), ("gin", 0.6))]  # fmt: skip
    found = significance(group_rows(rows))
    assert found is not None
    (one,) = found.pairs
    assert (one.low, one.high, one.not_better, one.verdict) == (None, None, None, "open")
    assert "A domain with a single subject gives no interval." in findings(found)


def test_holm_over_three_pairs_is_the_procedure_by_hand(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    values = {name: 0.5 + add + generator.normal(0, 0.05, 12) for name, add in (("a", 0), ("b", 0.03), ("c", 0.08))}
    rows = [
        trial(tmp_path, name, 1, [("new", f"s{i:02}", v) for i, v in enumerate(v_s)]) for name, v_s in values.items()
    ]
    found = significance(group_rows(rows))
    assert found is not None
    raw = sorted(wilcoxon(values[a].round(6) - values[b].round(6)).pvalue for a, b in itertools.combinations(values, 2))
    by_hand = np.maximum.accumulate([min(1.0, factor * p) for factor, p in zip((3, 2, 1), raw, strict=True)])
    assert sorted(pair.p for pair in found.pairs if pair.p is not None) == pytest.approx(by_hand)


def test_validation_chooses_which_hyperparameters_are_compared_and_a_subject_counts_once(tmp_path: Path) -> None:
    cells = [("new", "s1", 0.4), ("new", "s1", 0.6), ("far", "s1", 0.1), ("new", "s2", 0.5), ("far", "s2", 0.3)]
    rows = [
        trial(tmp_path, "erm", 1, cells),
        trial(tmp_path, "dropgen", 1, [(domain, who, 0.9) for domain, who, _ in cells], 0.3),
        trial(tmp_path, "dropgen", 1, [(domain, who, 0.7) for domain, who, _ in cells], 0.6),
    ]
    assert subject_scores(scored_cases(Path(rows[0]["evaluation"]))) == pytest.approx(
        {("far", "s1"): 0.1, ("far", "s2"): 0.3, ("new", "s1"): 0.5, ("new", "s2"): 0.5}
    )
    found = significance(group_rows(rows))
    assert found is not None
    assert found.n == 2
    assert found.pairs[0].gain == pytest.approx(0.7 - (0.2 + 0.5) / 2)


def test_there_is_nothing_to_compare_with_one_method_or_without_unseen_subjects(tmp_path: Path) -> None:
    lone = trial(tmp_path, "erm", 1, [("new", "s1", 0.4)])
    assert significance(group_rows([lone])) is None
    blind = [trial(tmp_path, name, 2, [("home", "s1", 0.4)]) for name in ("erm", "gin")]
    assert significance(group_rows(blind)) is None


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_the_critical_difference_has_the_quantiles_of_demsars_table(methods: int, quantile: float) -> None:
    expected = quantile * np.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=1e-3)


@given(st.lists(st.floats(1, 9), min_size=1, max_size=9).map(sorted), st.floats(0, 8))
def test_a_bar_joins_whoever_lies_within_the_critical_difference_and_nobody_else(
    ranks: list[float], critical: float
) -> None:
    bars = cliques(ranks, critical)
    for one, other in itertools.combinations(range(len(ranks)), 2):
        joined = any(first <= one and other <= last for first, last in bars)
        assert joined == (ranks[other] - ranks[one] <= critical)


# The first table of the paper. Cells that were lost are made up here, in keeping with what is known of them.
PAPER = {
    "ERM": (57.4, 38.9, 24.6, 63.6, 25.3, 83.0), "GIN": (65.1, 29.9, 17.9, 64.1, 41.1, 82.1),
    "GIN+IPA": (66.0, 43.0, 40.0, 64.7, 47.0, 84.2), "MixUp": (61.5, 41.2, 36.3, 64.5, 26.7, 82.5),
    "CutOut": (55.5, 41.8, 26.5, 64.9, 30.5, 84.0), "DSBN": (58.0, 40.5, 29.6, 66.0, 26.3, 83.4),
    "MixStyle": (53.9, 40.7, 27.9, 64.4, 24.0, 82.3), "RSC": (60.8, 42.1, 26.0, 66.5, 28.2, 83.4),
    "nnUNet": (48.0, 35.5, 13.7, 65.0, 30.1, 71.6), "DropGen": (67.0, 45.0, 45.0, 65.8, 46.0, 84.7),
}  # fmt: skip


def test_average_ranks_are_those_that_the_paper_prints() -> None:
    ranks = dict(zip(PAPER, average_ranks(list(zip(*PAPER.values(), strict=True))), strict=True))
    assert {name: f"{rank:.1f}" for name, rank in ranks.items()} == {
        "ERM": "8.0", "GIN": "7.2", "GIN+IPA": "2.5", "MixUp": "5.5", "CutOut": "5.0", "DSBN": "5.2", "MixStyle": "7.7",
        "RSC": "4.3", "nnUNet": "8.0", "DropGen": "1.5",
    }  # fmt: skip


def test_the_tables_for_a_paper_hold_the_numbers_and_nothing_that_latex_would_choke_on(tmp_path: Path) -> None:
    rows = [
        trial(tmp_path, name, seed, [("new_50%", f"s{i}", dice + i / 100) for i in range(6)])
        for name, dice in (("erm", 0.3), ("a&b", 0.6))
        for seed in (1, 2)
    ]
    groups = group_rows(rows)
    text = tables(groups, significance(groups), ["NSD < 2 mm & more."])
    assert r"new\_50\%" in text
    assert r"a\&b" in text
    assert r"\textbf{62.5}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    assert all(ord(letter) < 128 for letter in text)
    for table in text.split(r"\begin{tabular}")[1:]:
        widths = {line.replace(r"\&", "").count("&") for line in table.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1
