from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.features.studies.volume import read_volume
from dropgen.platform.bench import predict
from dropgen.platform.bench.predict import FeaturesBench, MemoryBench, bench_features, bench_memory
from dropgen.platform.bench.predict_model import anatomix_like, image_alone
from dropgen.platform.bench.predict_run import PEERS, Run, run_features, run_peer
from dropgen.platform.evaluation.inference import window_boxes

LIBRARIES_MIB = 150  # what kernels and caches of PyTorch come to once they are used
MEMORY = MemoryBench(shape=(40, 24, 20), classes=5, crop=16)
FEATURES = FeaturesBench(shape=(48, 32, 32), classes=3, crop=32, network=Network(base=4, downs=1))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs stay in this process: what one takes in memory is then not its own, and all else is as it is."""
    monkeypatch.setattr(predict, "_alone", lambda work, *arguments: work(*arguments))


def test_untrained_models_find_every_class(tmp_path: Path) -> None:
    predict._write_volume(tmp_path, MEMORY.shape)
    volume = read_volume(tmp_path / predict.VOLUME)
    mask = image_alone(MEMORY.network, MEMORY.classes, MEMORY.crop).predict(volume)
    assert len(np.unique(mask)) == MEMORY.classes
    predict._write_volume(tmp_path, FEATURES.shape)
    model = anatomix_like(FEATURES.network, FEATURES.classes, FEATURES.crop, "volume", tmp_path)
    assert len(np.unique(model.predict(read_volume(tmp_path / predict.VOLUME)))) == FEATURES.classes


def test_every_peer_makes_the_mask_of_the_whole_logits(tmp_path: Path, here: None) -> None:
    rows = bench_memory(MEMORY, tmp_path)
    assert [row["peer"] for row in rows] == [*PEERS, "slabs, MIND"]
    assert all(len(row["raw_s"]) == 1 and row["unavailable"] is None for row in rows)
    assert all(row["least_dice"] > 0.999 for row in rows[:-1])
    assert rows[-1]["least_dice"] is None  # another network, on other inputs
    assert [row["planned_mib"] is not None for row in rows] == [True, False, False, True]
    assert {row["met"] for row in rows} == {None}  # nothing was promised of this size


def test_a_run_of_its_own_process_says_what_it_held(tmp_path: Path) -> None:
    predict._write_volume(tmp_path, MEMORY.shape)
    image_alone(MEMORY.network, MEMORY.classes, MEMORY.crop).save(tmp_path / "image")
    run = predict._alone(run_peer, "slabs", tmp_path / "image", tmp_path / predict.VOLUME, tmp_path / "mask.npy")
    assert 100 * 2**20 < run.loaded < run.peak
    assert 0 < run.seconds < 60
    assert np.load(tmp_path / "mask.npy").shape == MEMORY.shape


def test_a_peer_that_is_killed_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(work: Any, peer: str, *arguments: Any) -> Any:
        if peer == "MONAI":
            raise predict.BrokenProcessPool("killed")
        return work(peer, *arguments)

    monkeypatch.setattr(predict, "_alone", alone)
    rows = {row["peer"]: row for row in bench_memory(MEMORY, tmp_path)}
    assert "too little memory" in rows["MONAI"]["unavailable"]
    assert (rows["MONAI"]["raw_s"], rows["MONAI"]["least_dice"]) == ([], None)
    assert rows["slabs"]["least_dice"] > 0.999


def test_features_are_extracted_once_or_in_every_window_and_floors_are_below_one(tmp_path: Path, here: None) -> None:
    once, often = bench_features(FEATURES, tmp_path)
    windows = len(window_boxes(FEATURES.shape, (FEATURES.crop,) * 3, 0.5, 0))
    assert (once["peer"], once["extractor_calls"], once["network_windows"]) == ("once per volume", 1, windows)
    assert (often["peer"], often["extractor_calls"]) == ("in every window", -(-windows // 4))
    assert often["ratio_to_windows"] == often["floor_flops"] == 1
    assert 0 < once["floor_flops"] < 1
    assert 0 < once["mean_dice"] <= 1
    assert once["network_s"] + once["extractor_s"] < once["median_s"]


def test_a_model_of_window_features_extracts_in_every_window(tmp_path: Path) -> None:
    predict._write_volume(tmp_path, FEATURES.shape)
    anatomix_like(FEATURES.network, FEATURES.classes, FEATURES.crop, "window", tmp_path).save(tmp_path / "bundle")
    run = run_features(tmp_path / "bundle", tmp_path / predict.VOLUME, tmp_path / "mask.npy")
    assert run.extractor_calls == 1  # two windows are one batch
    assert run.extractor_s > 0


def test_the_verb_writes_its_record(tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "predict", "--part", "memory", "--shape", "20,18,16", "--crops", "16", "--classes", "3", "--json"]
    assert main([*words, "--root", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "bench" / "predict.json").read_text())["rows"] == document["rows"]
    assert (document["settings"]["memory"]["crop"], document["settings"]["memory"]["classes"]) == (16, 3)


@pytest.mark.parametrize(("beside", "met"), [(3814, True), (3815, False)])
def test_at_the_promised_size_our_own_rows_say_whether_the_promise_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: int, met: bool
) -> None:
    def run(work: Any, peer: str, bundle: Path, volume: Path, mask: Path) -> Run:
        np.save(mask, np.zeros(1, np.uint8))
        return Run(1.0, 2**20, (1 + beside) * 2**20)

    monkeypatch.setattr(predict, "_alone", run)
    monkeypatch.setattr(predict, "_write_volume", lambda folder, shape: None)
    rows = bench_memory(MemoryBench(repeats=2), tmp_path)
    assert [row["met"] for row in rows] == [met, None, None, met]


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--shape", "20,18,16"), "--part"), (("--part", "memory", "--shape", "20,18,16"), "at least a window's 64"),
     (("--part", "features", "--shape", "64,64,64", "--crops", "32"), "64"),
     (("--crops", "16,32"), "windows of one size"), (("--workers", "2"), "belongs to bench precompute"),
     (("--part", "memory", "--shape", "64,64,64", "--repeats", "0"), "at least 1 round")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "predict", *words, "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_benchmark_of_bad_shape_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="three axes"):
        bench_memory(MemoryBench(shape=(9, 9, 9)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_resident_memory_is_what_was_planned_and_a_part_of_what_whole_logits_take(tmp_path: Path) -> None:
    rows = {row["peer"]: row for row in bench_memory(MemoryBench(shape=(320, 192, 160), crop=32), tmp_path)}
    for name in ("slabs", "slabs, MIND"):
        beside, planned = rows[name]["beside_mib"], rows[name]["planned_mib"]
        assert 0.4 * planned < beside < planned + LIBRARIES_MIB
    assert rows["slabs"]["beside_mib"] < rows["whole logits"]["beside_mib"] / 2
    assert rows["slabs"]["beside_mib"] < rows["MONAI"]["beside_mib"] / 2
