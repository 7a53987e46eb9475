from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from dropgen.errors import ConfigError
from dropgen.features.bench.precompute import PrecomputeBench, bench_precompute
from dropgen.features.crew import IN_FLIGHT


@pytest.mark.slow
@pytest.mark.nightly
def test_serial_and_overlapped_runs_of_every_crew_have_a_row_told_from_its_raw_values(tmp_path: Path) -> None:
    runs: list[None] = []
    spec = PrecomputeBench(shape=(9, 8, 7), volumes=3, workers=(1, 2))
    rows = bench_precompute(spec, tmp_path, lambda: runs.append(None))
    assert [(row["workers"], row["in_flight"]) for row in rows] == [(1, 1), (1, IN_FLIGHT), (2, 1), (2, IN_FLIGHT)]
    assert len(runs) == 20
    for row in rows:
        assert len(row["raw_s"]) == len(row["raw_busy"]) == row["repeats"] == 5
        assert row["median_s"] == median(row["raw_s"])
        assert row["extractor_busy"] == median(row["raw_busy"])
        assert all(0 < busy <= 1 for busy in row["raw_busy"])
        assert row["volumes_per_second"] == 3 / row["median_s"]
    assert [row["ratio_to_serial"] for row in rows if row["in_flight"] == 1] == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repeats": 4}, "--repeats = 4"),
        ({"shape": (8, 8)}, r"--shape = \(8, 8\): a volume has three axes"),
        ({"workers": ()}, r"--workers = \(\)"),
        ({"workers": (2, 0)}, r"--workers = \(2, 0\): name numbers of processes"),
    ],
)
def test_what_would_measure_nothing_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PrecomputeBench(**settings)  # type: ignore[arg-type]
