from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dropgen.config import Component
from dropgen.platform.card import model_card
from dropgen.platform.evaluate import COLUMNS
from tests_support.segmenters import make_segmenter

SCORES = [("c1", "s1", "a", 0.9), ("c2", "s1", "a", 0.7), ("c3", "s2", "a", 0.6), ("c4", "s3", "b", 0.5)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_segmenter(Component.of("erm")).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_scores_are_means_over_subjects_with_an_interval_where_there_are_two(bundle: Path) -> None:
    table = bundle.parent / "evaluation" / "cases.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((case, subject, domain, "test", "one", dice) for case, subject, domain, dice in SCORES)
    first, second = model_card(bundle, "toy")["scores"]
    assert (first["domain"], first["subjects"], first["dice"]) == ("a", 2, 0.7)
    assert first["interval_95"] == [0.6, 0.8]  # of two subjects: both bounds are one of them, drawn twice
    assert (second["subjects"], second["dice"], second["interval_95"]) == (1, 0.5, None)


def test_a_model_without_an_evaluation_says_that_it_has_no_scores(bundle: Path) -> None:
    card = model_card(bundle, "toy")
    assert card["scores"] == []
    assert "no scores" in card["limits"][-1]
    assert card["use"] == "research use only"
