"""Run time: the paper's percentages from the paper's seconds, and real steps of real methods."""

from __future__ import annotations

import pytest

from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.runtime import PAPER, PAPER_ERM, analyse, percent_over


def test_the_formula_gives_the_percentages_that_the_paper_prints() -> None:
    assert percent_over(PAPER["dropgen"], PAPER_ERM) == pytest.approx(20.7, abs=0.05)
    assert percent_over(PAPER["gin_ipa"], PAPER_ERM) == pytest.approx(234.1, abs=0.05)


def test_every_method_is_timed_and_erm_is_the_measure_of_itself(scene: Scene) -> None:
    rows = {row["method"]: row for row in analyse(scene).rows}
    assert set(rows) == {"erm", "dropgen"}
    assert rows["erm"]["resident_percent_over_erm"] == 0
    assert rows["erm"]["loader_percent_over_erm"] == 0
    assert all(row["resident_s"] > 0 and row["loader_s"] > 0 and row["resident_sd"] >= 0 for row in rows.values())
    assert rows["dropgen"]["paper_percent_over_erm"] == pytest.approx(20.7, abs=0.05)
    assert rows["erm"]["paper_percent_over_erm"] is None
