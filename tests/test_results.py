"""The runs that are kept in benchmarks/results are whole: rows with their raw values, code, machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
FIELDS = {
    "store": "bench peer dtype crop cache median_ms min_ms max_ms bytes repeats raw_ms unavailable",
    "step": "bench method features median_s ratio_to_erm data_wait raw_s unavailable",
    "precompute": "bench workers in_flight median_s extractor_busy ratio_to_serial repeats raw_s raw_busy",
    "predict": "bench",
    "segment": "bench way in_flight scans median_s throughput model_busy repeats raw_s raw_busy",
    "serve": "bench phase edge requests failed retried killed lost doubled p50_ms p99_ms rss_growth raw_ms",
}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_run_has_its_rows_raw_values_commit_and_machine(path: Path) -> None:
    record = json.loads(path.read_text())
    bench = path.stem.partition("-")[0]
    assert record.keys() == {"bench", "settings", "rows", "commit", "machine"}
    assert record["bench"] == bench
    assert re.fullmatch(r"[0-9a-f]{12,40}", record["commit"]), "of a clean checkout"
    assert {"cpu", "cores", "memory_gib", "accelerator", "os", "load", "versions"} <= record["machine"].keys()
    assert record["machine"]["load"] < record["machine"]["cores"], "the machine was not quiet"
    assert record["rows"]
    for row in record["rows"]:
        assert set(FIELDS[bench].split()) <= row.keys()
        assert row["bench"] == bench
        require_figures(row)


def require_figures(row: dict[str, Any]) -> None:
    """A row is the median of the raw values beside it, or says why there are none."""
    for unit in ("ms", "s"):
        raw = row.get(f"raw_{unit}")
        if row["bench"] == "serve":
            assert raw is None or len(raw) == row["requests"]
        elif raw:
            assert len(raw) >= (1 if row["bench"] == "predict" else 5)
            assert row[f"median_{unit}"] == pytest.approx(median(raw))
        elif raw is not None:
            assert row["unavailable"]
            assert row[f"median_{unit}"] is None
