"""Trials: exact on resume whatever moment the process dies at, finished once, refused when they cannot work."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from dropgen.config import Component, Experiment, Selection, Trial
from dropgen.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    ResourceError,
    StoreError,
    StudyError,
    WeightsError,
)
from dropgen.features.store import FeatureStore, Kind, close_maps
from dropgen.features.store.arrays import METADATA
from dropgen.features.store.entry import COMMIT, describe, sealed
from dropgen.features.studies.codes import Code
from dropgen.features.studies.validation import validation_cases
from dropgen.manifest import read_json
from dropgen.platform.methods import Criterion
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.train import Progress, Workbench, choose_trials, train_trial, trials_of
from dropgen.platform.training.checkpoint import load_checkpoint, save_checkpoint
from dropgen.platform.training.trial import DIVERGED, segmenter_spec
from tests_support.checkpoints import digest_of
from tests_support.killable import Training, start_training
from tests_support.tiny import fill_store, tiny_bench, tiny_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
RULE = Selection(rule="target_validation")
DROPGEN = Trial(method=Component.of("dropgen", p=0.5), seed=1)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return tiny_bench(tmp_path)


def test_a_finished_trial_leaves_a_bundle_a_result_and_its_curve(bench: Workbench) -> None:
    seen: list[Progress] = []
    result = train_trial(bench, DROPGEN, seen.append)
    assert [step for step, _ in result["curve"]["validation"]] == [3, 6]
    assert result["best_step"] in (3, 6)
    assert result["val_dice"] == max(dice for _, dice in result["curve"]["validation"])
    assert (Path(result["bundle"]) / "weights.safetensors").is_file()
    assert (result["method"], result["p"], result["seed"], result["steps"]) == ("dropgen", 0.5, 1, 6)
    assert 0 <= result["data_wait"] < 1
    assert seen[-1].step == 6


def test_the_studys_codes_are_the_bundles(bench: Workbench) -> None:
    name = bench.study.classes[1]
    codes = {name: Code(scheme="SCT", value="87878005", meaning="Left ventricle")}
    coded = replace(bench, study=replace(bench.study, codes=codes))
    assert segmenter_spec(coded, DROPGEN).codes == codes
    assert segmenter_spec(bench, DROPGEN).codes == {}


def test_a_finished_trial_is_not_trained_again(bench: Workbench) -> None:
    first = train_trial(bench, DROPGEN)
    seen: list[Progress] = []
    assert train_trial(bench, DROPGEN, seen.append) == first
    assert not seen


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        bench = tiny_bench(tmp_path, name=name, seeds=[seed])
        folder = Path(train_trial(bench, trials_of(bench.experiment)[0])["folder"])
        weights.append(digest_of(folder / "last.ckpt"))
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("source", ["stored", "online"])
@pytest.mark.parametrize("method", ["erm", "rep_only", "dropgen"])
def test_every_method_trains_with_stored_and_online_features(tmp_path: Path, method: str, source: str) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": method}], features={"source": source}, training={"steps": 2})
    assert train_trial(bench, trials_of(bench.experiment)[0])["steps"] == 2


def test_a_list_of_values_is_a_grid_over_seeds(tmp_path: Path) -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": [0, 0.5]}]
    experiment = tiny_experiment(tmp_path, methods=methods, seeds=[1, 2])
    assert [trial.label for trial in trials_of(experiment)] == [
        "erm seed=1", "erm seed=2", "dropgen p=0 seed=1", "dropgen p=0 seed=2", "dropgen p=0.5 seed=1",
        "dropgen p=0.5 seed=2",
    ]  # fmt: skip
    assert [trial.seed for trial in choose_trials(experiment, "erm", 2)] == [2]
    with pytest.raises(ConfigError, match=r"did you mean 'dropgen p=0\.5'"):
        choose_trials(experiment, "dropgen p=.5", None)


@pytest.mark.parametrize("values", [[], ()])
def test_a_list_of_no_value_is_refused_instead_of_dropping_its_method(values: object) -> None:
    methods = (Component.of("erm"), Component.of("dropgen", p=values))
    with pytest.raises(ConfigError, match=r"method dropgen: p = (\[\]|\(\)) lists no value; name at least one"):
        trials_of(Experiment(name="x", study=Path("study.yaml"), selection=RULE, methods=methods))


def test_what_is_listed_twice_is_one_trial() -> None:
    methods = (Component.of("erm"), Component.of("dropgen", p=[0.5, 0.5]), Component.of("dropgen", p=0.5))
    experiment = Experiment(name="x", study=Path("study.yaml"), selection=RULE, methods=methods, seeds=(1, 1))
    assert [trial.label for trial in trials_of(experiment)] == ["erm seed=1", "dropgen p=0.5 seed=1"]


def test_a_store_that_does_not_cover_the_study_is_refused_before_step_zero(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="dropgen precompute"):
        Workbench.open(tiny_experiment(tmp_path), tmp_path)


@pytest.mark.parametrize("kind", ["volumes", "labels", "features"])
def test_a_store_that_lacks_one_entry_is_refused_before_step_zero(root: Path, kind: Kind) -> None:
    experiment, store = tiny_experiment(root), FeatureStore(root / "store")
    shutil.rmtree(store.path(kind, store.entries(kind)[-1]))
    with pytest.raises(StoreError, match="dropgen precompute"):
        Workbench.open(experiment, root)


@pytest.mark.parametrize("kind", ["volumes", "labels", "features"])
def test_a_flipped_bit_ends_training_with_the_case_named_and_the_repaired_store_continues_it(
    tmp_path: Path, kind: str
) -> None:
    sound, bench = tiny_bench(tmp_path / "sound"), tiny_bench(tmp_path / "damaged")
    (case, *_) = bench.study.split("train")
    entry = next(entry for entry in bench.index.keys[case.id].entries() if entry[0] == kind)
    folder = bench.store.path(*entry)
    chunk = next(folder.glob("c.*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    close_maps()
    trial = Trial(method=Component.of("rep_only"), seed=1)
    where = rf"{kind}/{entry[1]} \(case {case.id}\): file {chunk.name}"
    with pytest.raises(StoreError, match=rf"{where} is damaged; remove {folder} and run `dropgen precompute"):
        train_trial(bench, trial)
    assert read_json(bench.folder(trial) / "result.json") is None
    shutil.rmtree(folder)
    fill_store(bench.experiment, bench.root)
    close_maps()
    assert train_trial(bench, trial)["curve"] == train_trial(sound, trial)["curve"]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_stored_label_with_a_value_that_is_no_class_is_refused_before_step_zero(
    tmp_path: Path, says_so: bool
) -> None:
    bench = tiny_bench(tmp_path)
    if not says_so:
        for key in bench.store.entries("labels"):
            strip_highest(bench.store.path("labels", key))
    study = bench.experiment.study
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"classes": ["background", "organ"]}))
    bench = Workbench.open(bench.experiment, tmp_path)
    validated = validation_cases(bench.study, bench.experiment.selection.rule)
    used = [case.id for case in (*bench.study.split("train"), *validated)]
    cases = [case for case in used if bench.store.label(bench.index.keys[case].label or "").max() == 2]
    assert cases
    with pytest.raises(StudyError, match=r"has the classes 0\.\.1 \(background, organ\), and some labels") as found:
        train_trial(bench, DROPGEN)
    assert [line.split(" of ")[0] for line in found.value.problems] == [f"case {case}: label value 2" for case in cases]
    assert not (bench.folder(DROPGEN) / "last.ckpt").exists()


def strip_highest(folder: Path) -> None:
    """Makes a label's entry one that was written before entries said what their greatest value is."""
    metadata = read_json(folder / METADATA)
    assert metadata["attributes"].pop("highest") in (1, 2)
    (folder / METADATA).write_text(json.dumps(metadata))
    record = read_json(folder / COMMIT)
    (folder / COMMIT).unlink()
    (folder / COMMIT).write_bytes(sealed(describe(folder, record["provenance"])))


def test_a_missing_extractor_is_told_before_data_are_read_and_only_where_a_method_reads_features(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    features = {"extractor": {"name": "anatomix"}}
    erm = Workbench.open(tiny_experiment(root, methods=[{"name": "erm"}], features=features), root)
    assert erm.extractor is None
    empty = tmp_path / "empty"  # no store: were data asked for first, that is what would be missed
    with pytest.raises(WeightsError, match="anatomix weights not found"):
        Workbench.open(tiny_experiment(empty, features=features), empty)


def test_a_crop_that_the_network_cannot_halve_is_refused_with_a_legal_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop axis x = 16 voxels.*divisible by 32"):
        tiny_bench(tmp_path, network={"downs": 5})


def test_a_divergent_loss_names_step_method_and_last_finite_loss(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, training={"learning_rate": 1e30, "validate_every": 6})
    with pytest.raises(DivergenceError, match=r"dropgen: loss is \S+ at step \d+; .*learning_rate") as caught:
        train_trial(bench, DROPGEN)
    note = read_json(bench.folder(DROPGEN) / DIVERGED)
    assert (note["step"], note["why"]) == (caught.value.step, str(caught.value))
    assert f"at step {note['step']};" in note["why"]


@pytest.mark.parametrize("fails", [1, 2, 4])
def test_the_last_finite_loss_is_that_of_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    losses: list[float] = []

    def loss(method: DropGen, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        value = plain(method, network, batch, criterion) * (float("nan") if len(losses) + 1 == fails else 1)
        losses.append(float(value.detach()))
        return value

    plain = DropGen.loss
    monkeypatch.setattr(DropGen, "loss", loss)
    bench = tiny_bench(tmp_path, training={"validate_every": 6, "checkpoint_every": 6})
    with pytest.raises(DivergenceError) as caught:
        train_trial(bench, DROPGEN)
    last = "no loss was finite" if fails == 1 else f"the last finite loss was {losses[fails - 2]:.4f}"
    assert str(caught.value).startswith(f"dropgen: loss is nan at step {fails}; {last}; ")
    folder = bench.folder(DROPGEN)
    assert not [name for name in ("last.ckpt", "bundle", "result.json") if (folder / name).exists()]


def test_a_damaged_checkpoint_is_refused_by_name(bench: Workbench) -> None:
    folder = bench.folder(DROPGEN)
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"last.ckpt is damaged"):
        train_trial(bench, DROPGEN)


def test_a_trials_key_covers_data_settings_and_seed_but_not_an_unused_extractor(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, methods=[{"name": "erm"}, {"name": "dropgen"}])
    erm, dropgen = (Trial(method=Component.of(name), seed=1) for name in ("erm", "dropgen"))
    faster = tiny_bench(tmp_path, training={"learning_rate": 0.5})
    assert bench.key(dropgen) != faster.key(dropgen)
    assert bench.key(dropgen) != bench.key(dropgen.model_copy(update={"seed": 2}))
    other = tiny_experiment(tmp_path, features={"dtype": "float16"})
    fill_store(other, tmp_path)
    half = Workbench.open(other, tmp_path)
    assert half.key(erm) == bench.key(erm)
    assert half.key(dropgen) != bench.key(dropgen)


def start(root: Path, name: str) -> Training:
    training = {"steps": 40, "validate_every": 20, "checkpoint_every": 1}
    return start_training(root, name=name, training=training)


@pytest.mark.slow
def test_forty_steps_equal_any_number_of_kills_in_between_byte_for_byte(tmp_path: Path) -> None:
    undisturbed = start(tmp_path, "whole")
    undisturbed.process.join(200)
    assert undisturbed.process.exitcode == 0
    generator = random.Random(4)
    kills = 0
    for _ in range(30):
        training = start(tmp_path, "killed")
        if training.step() is not None and kills < 4:
            # With a checkpoint every step, a random moment is as often inside the writing of one as not.
            for _ in range(generator.randrange(8)):
                training.step()
            time.sleep(generator.random() * 0.03)
            training.process.kill()
            training.process.join()
            kills += training.process.exitcode == -signal.SIGKILL
            continue
        training.process.join(200)
        assert training.process.exitcode == 0
        break
    assert kills >= 3
    whole, killed = (next((tmp_path / name / "trials").iterdir()) for name in ("whole", "killed"))
    assert digest_of(whole / "last.ckpt") == digest_of(killed / "last.ckpt")
    assert (whole / "bundle/weights.safetensors").read_bytes() == (killed / "bundle/weights.safetensors").read_bytes()
    assert read_json(whole / "result.json")["curve"] == read_json(killed / "result.json")["curve"]


@pytest.mark.slow
def test_a_process_killed_while_it_writes_a_checkpoint_leaves_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    code = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from dropgen.platform.training.checkpoint import save_checkpoint\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1\n"
        "    save_checkpoint(Path(sys.argv[1]), {'step': step, 'weights': torch.full((4_000_000,), float(step))})\n"
        "    print(step, flush=True)\n"
    )
    generator = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.random() * 0.1)
        process.kill()
        process.wait()
        state = load_checkpoint(path)
        assert state is not None
        assert torch.equal(state["weights"], torch.full((4_000_000,), float(state["step"])))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "file" / "last.ckpt", {"step": 1})


def test_the_store_is_opened_once_and_read_only(bench: Workbench) -> None:
    volume = FeatureStore(bench.root / "store").volume(next(iter(bench.index.keys.values())).volume)
    assert not volume.unit.flags.writeable
