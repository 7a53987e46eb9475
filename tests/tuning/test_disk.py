"""A search stops before the disk is full, says so in one sentence, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch

from dropgen.config import Component
from dropgen.errors import ResourceError
from dropgen.platform.methods import METHODS
from dropgen.platform.methods import build as build_method
from dropgen.platform.networks import build_network
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.tuning import disk as module
from dropgen.tuning.disk import RESERVE, Disk, kept_bytes, weight_bytes
from dropgen.tuning.search import search
from dropgen.tuning.space import plan
from dropgen.tuning.standing import left
from tests_support.tiny import tiny_bench, tiny_experiment


def test_what_a_trial_is_said_to_keep_is_what_it_leaves(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, network={"base": 8, "downs": 2}, methods=[{"name": "erm"}, {"name": "dropgen"}])
    for trial in trials_of(bench.experiment):
        train_trial(bench, trial)
        written = sum(file.stat().st_size for file in bench.folder(trial).rglob("*") if file.is_file())
        said = kept_bytes(bench, weight_bytes(bench, trial.method))
        assert said == pytest.approx(written, rel=0.1, abs=64 * 1024)


def test_what_is_still_needed_falls_with_every_trial_that_ends(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": "dropgen", "p": [0, 0.5]}])
    planned = plan(bench.experiment)
    disk = Disk(bench, 2, lambda: left(bench, planned))
    before = disk.needed()
    one = kept_bytes(bench, weight_bytes(bench, planned.fixed[0].method))
    assert before == 2 * one + 2 * 3 * (one // 4) + RESERVE
    train_trial(bench, planned.fixed[0])
    assert disk.needed() == one + 3 * (one // 4) + RESERVE
    train_trial(bench, planned.fixed[1])
    assert disk.needed() == 0


def test_what_a_space_has_not_drawn_yet_counts_too(tmp_path: Path) -> None:
    search = {"sampler": "tpe", "trials": 3}
    methods = [{"name": "dropgen", "p": {"low": 0.1, "high": 0.6}}]
    experiment = tiny_experiment(tmp_path, methods=methods, search=search, seeds=[1, 2])
    planned = plan(experiment)
    bench = tiny_bench(tmp_path, methods=[{"name": "dropgen", "p": 0.1}], search=search, seeds=[1, 2])
    trials = left(bench, planned)
    assert len(trials) == 4  # three points, and the best one with the second seed
    assert {trial.method.name for trial in trials} == {"dropgen"}


def test_a_search_that_the_disk_cannot_hold_does_not_begin(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda folder: 10**6)
    monkeypatch.setattr("dropgen.tuning.search.connect", lambda *_: pytest.fail("Ray was started for nothing"))
    experiment = tiny_experiment(root, methods=[{"name": "erm"}])
    with pytest.raises(ResourceError, match=r"trials that 'tiny' still has to train need .* and 1\.0 MB are free"):
        search(experiment, root)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_disk_that_fills_up_stops_the_search_and_the_same_command_continues_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 30, "validate_every": 10, "checkpoint_every": 5}
    experiment = tiny_experiment(
        root, methods=[{"name": "dropgen", "p": [0, 0.25, 0.5]}], training=training, search={"concurrent": 1}
    )

    def free(folder: Path) -> int:
        return 10**6 if any(folder.glob("trials/*/result.json")) else 10**12

    monkeypatch.setattr(module, "free_bytes", free)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    with pytest.raises(ResourceError, match="then the same command continues them: nothing is lost") as caught:
        search(experiment, root)
    document = caught.value.document
    assert document is not None
    assert 1 <= len(document["trials"]) < 3
    assert len(document["trials"]) + len(document["unfinished"]) == 3
    assert document["model_uri"] == "models:/tiny@champion"
    before = {path: path.stat().st_mtime_ns for path in root.glob("tiny/trials/*/result.json")}
    monkeypatch.undo()
    assert len(search(experiment, root)["trials"]) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("name", METHODS)
def test_the_weights_of_every_method_take_what_they_take_in_a_file(name: str, filled_root: Path) -> None:
    bench = Workbench.open(tiny_experiment(filled_root), filled_root)
    method = build_method(Component.of(name))
    assert bench.extractor is not None
    channels = bench.extractor.channels if method.needs_features else 0
    network = build_network(bench.experiment.network, method, channels, len(bench.study.classes))
    written = safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()})
    header = 8 + int.from_bytes(written[:8], "little")
    assert weight_bytes(bench, Component.of(name)) == len(written) - header
