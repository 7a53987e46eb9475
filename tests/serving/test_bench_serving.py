"""`dropgen bench segment` and `dropgen bench serve`, small: rows, and that nothing is lost when a replica dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dropgen.__main__ import main
from dropgen.manifest import REPOSITORY

SCHEMA = json.loads((REPOSITORY / "dropgen" / "schema.json").read_text())


def bench(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["bench", *words, "--json", "--root", str(root)]) == 0
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator({**SCHEMA, "$ref": "#/$defs/bench"}).validate(document)
    assert json.loads(Path(document["record"]).read_text())["rows"] == document["rows"]
    assert [path.name for path in root.iterdir()] == ["bench"], "it leaves its record and nothing else"
    rows: list[dict[str, Any]] = document["rows"]
    return rows


@pytest.mark.nightly
@pytest.mark.slow
def test_every_request_is_answered_and_audited_once_while_a_replica_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench(capsys, tmp_path, "serve", "--edges", "32,48", "--requests", "0,0,30", "--clients", "3")
    (row,) = rows
    assert (row["phase"], row["requests"], row["killed"]) == ("kill", 30, 1)
    assert (row["failed"], row["errors"], row["lost"], row["doubled"]) == (0, [], 0, 0)
    assert row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] == max(row["raw_ms"])


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_is_segmented_alike_in_every_way_and_each_says_how_busy_the_model_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench(capsys, tmp_path, "segment", "--shape", "64,64,64", "--scans", "4")
    busy = {row["way"]: row["model_busy"] for row in rows}
    assert set(busy) == {"ready tensors", "one at a time", "in flight", "Ray Data"}
    assert all(0 < share <= 1 for share in busy.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("serve", "--edges", "32"), "--edges = (32,)"),
        (("serve", "--requests", "0,0,0"), "--requests = (0, 0, 0)"),
        (("serve", "--clients", "0"), "--clients 0"),
        (("segment", "--scans", "1"), "--scans = 1"),
        (("segment", "--repeats", "2"), "repeats"),
        (("serve", "--repeats", "5"), "--repeats belongs to bench"),
        (("store", "--clients", "2"), "--clients belongs to bench serve"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    assert main(["bench", *words, "--root", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
