"""`dropgen precompute` and `dropgen store` on an object store, and the one sentence when it cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from dropgen.__main__ import main
from dropgen.config import Component, Features
from dropgen.errors import ConfigError, ResourceError
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore
from dropgen.features.store.command import command
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import write_mask, write_volume
from dropgen.features.worker import Recipe, Work, Worker
from tests_support.s3 import ACCESS, S3Bucket, free_port, refuse_everybody, serve, store_at

if TYPE_CHECKING:
    from conftest import StudyFolder

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENT = "name: tiny\nstudy: study.yaml\nselection: {rule: target_validation}\n"


def refused(capsys: pytest.CaptureFixture[str], root: Path, url: str) -> str:
    """The sentence that the command ends with."""
    assert main(["store", "verify", f"--features.store={url}", "--root", str(root)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_missing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, tmp_path, "s3://no-such-bucket/store")
    assert "cannot list s3://no-such-bucket/store: The specified bucket does not exist (NoSuchBucket)" in sentence
    assert sentence.endswith("; create the bucket or correct features.store\n")


@pytest.mark.usefixtures("bucket")
def test_a_network_that_is_lost_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "check the network, features.store and AWS_ENDPOINT_URL" in refused(capsys, tmp_path, "s3://unreachable/x")


def test_refused_credentials_and_a_server_that_dies_are_one_sentence_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as endpoint:
        for key, value in {**ACCESS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(key, value)
        bucket = S3Bucket.make(endpoint)
        store = store_at(bucket, tmp_path)
        store.put_label("k", np.ones((2, 2, 2), np.uint8), {"case": "one"})
        refuse_everybody(endpoint)
        sentence = refused(capsys, tmp_path, bucket.url)
        assert f"cannot list {bucket.url}: " in sentence
        assert "check the credentials in the environment" in sentence
    with pytest.raises(ResourceError, match=rf"cannot read from {bucket.url}: .*check the network"):
        store.label("k")
    with pytest.raises(ResourceError, match=rf"cannot write to {bucket.url}: .*check the network"):
        store.put_label("new", np.ones((2, 2, 2), np.uint8), {"case": "two"})
    assert not [path for path in store.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["nonsense://bucket/prefix", "file:///somewhere", "memory:///x"])
def test_what_is_no_address_of_an_object_store_is_refused(url: str, tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="needs the extra s3")
    with pytest.raises(
        ConfigError, match=rf"features\.store = {url} is no address of an object store; write one as s3"
    ):
        FeatureStore.of(Features(store=url), tmp_path).has("labels", "k")


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"s3://not-asked-before/x needs .* pip install 'dropgen\[s3\]'"):
        FeatureStore.of(Features(store="s3://not-asked-before/x"), tmp_path).has("labels", "k")


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_goes_into_a_bucket_as_into_a_folder_though_the_first_run_is_killed(
    tiny: StudyFolder, bucket: S3Bucket, tmp_path: Path
) -> None:
    for index in range(3):
        write_volume(tiny.image(index), np.random.default_rng(index).random((40, 40, 40), np.float32), np.eye(4))
        write_mask(tiny.label(index), np.zeros((40, 40, 40)), np.eye(4))
    study = load_study(tiny.write(), tmp_path)
    (tmp_path / "experiment.yaml").write_text(f"{EXPERIMENT}features: {{store: {bucket.url}}}\n")
    call = [sys.executable, "-m", "dropgen", "precompute", "experiment.yaml", "--workers", "1", "--json"]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "PYTHONPATH": str(REPOSITORY),
        "DROPGEN_ROOT": str(tmp_path / "there"),
    }
    killed = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    while not any(name.startswith("features/") for name in bucket.names()):
        assert killed.poll() is None, "the run ended before it was killed"
        family = psutil.Process(killed.pid).children(recursive=True)
        time.sleep(0.02)
    for process in (psutil.Process(killed.pid), *family):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    killed.wait()
    psutil.wait_procs(family, timeout=60)
    remote = store_at(bucket, tmp_path / "here")
    before = set(remote.everything())
    for entry in before:
        remote.verify(*entry)

    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["store"] == bucket.url
    assert document["missing"] == dict.fromkeys(KINDS, 0)
    assert sum(document["reused"].values()) == len(before) < 9

    local = FeatureStore(tmp_path / "store")
    worker = Worker(Recipe(local, study, Component.of("mind"), "float16", "commit"))
    keys = StudyIndex.of(study, Mind(), "float16").keys
    for case in study.cases:
        assert worker.run(Work(case, keys[case.id], KINDS)).problem is None
    assert remote.everything() == local.everything()
    for kind, key in local.everything():
        remote.place.open((kind, key))
        for path in local.path(kind, key).glob("c.*"):
            assert (remote.path(kind, key) / path.name).read_bytes() == path.read_bytes()


def test_the_verbs_that_look_after_a_store_do_so_in_a_bucket(
    tiny: StudyFolder, bucket: S3Bucket, tmp_path: Path
) -> None:
    study, remote = load_study(tiny.write(), tmp_path), store_at(bucket, tmp_path)
    (tmp_path / "experiment.yaml").write_text(f"{EXPERIMENT}features: {{store: {bucket.url}}}\n")

    def look(action: str, experiment: bool = False, yes: bool = False) -> dict[str, Any]:
        overrides = () if experiment else (f"--features.store={bucket.url}",)
        path = tmp_path / "experiment.yaml" if experiment else None
        return command(Namespace(action=action, experiment=path, root=tmp_path, yes=yes, overrides=overrides))

    assert look("status", experiment=True)["missing"] == dict.fromkeys(KINDS, 3)
    index = StudyIndex.of(study, Mind(), "float16")
    index.save(remote)
    worker = Worker(Recipe(remote, study, Component.of("mind"), "float16", "commit"))
    for case in study.cases:
        assert worker.run(Work(case, index.keys[case.id], KINDS)).problem is None
    index.require(remote)
    status = look("status", experiment=True)
    assert status["store"] == bucket.url
    assert status["done"] == dict.fromkeys(KINDS, 3)
    assert look("verify", experiment=True)["entries"] == look("verify")["entries"] == 9
    usage = look("du")
    assert usage["studies"][0]["bytes"] == usage["bytes"] == status["bytes"]
    assert sum(usage["bytes"].values()) == sum(
        len(bucket.read(name)) for name in bucket.names() if not name.startswith("studies/")
    )
    remote.put_label("loose", np.ones((2, 2, 2), np.uint8), {})
    assert look("gc", yes=True)["spared"] == 1
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr("dropgen.features.store.upkeep.FRESH_SECONDS", -1)
        assert look("gc", yes=True)["entries"] == {"volumes": 0, "labels": 1, "features": 0}
    assert look("verify")["entries"] == 9
