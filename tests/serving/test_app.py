from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from dropgen.__main__ import main
from dropgen.errors import ServiceError
from dropgen.features.studies.study import Case, load_study
from dropgen.features.studies.volume import Volume, read_mask, volume_from_bytes, write_mask, write_volume
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.tracking import fetch, register
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.serving.app import application
from dropgen.serving.client import Client
from dropgen.serving.replica import Deployment
from dropgen.serving.tokens import VARIABLE, Tokens, client_token
from tests_support.tiny import fill_store, tiny_experiment

START_SECONDS, STOP_SECONDS = 180, 60


@dataclass(frozen=True)
class Registered:
    """A trial that was trained, evaluated and registered; `case` is a test case on an oblique, odd-shaped grid."""

    root: Path
    case: Case
    evaluated: Path


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, oblique_volume: Callable[[int], Volume]) -> Registered:
    root = tmp_path_factory.mktemp("served")
    experiment = tiny_experiment(
        root, methods=[{"name": "rep_only"}], network={"base": 4}, training={"steps": 40, "validate_every": 20}
    )
    study = load_study(experiment.study, root)
    for seed, case in enumerate(study.cases):  # half of each volume is rough, which a few steps suffice to find
        volume = oblique_volume(seed)
        rough = np.zeros(volume.array.shape, bool)
        rough[:12] = True
        noise = np.random.default_rng(seed).normal(scale=volume.array.std(), size=rough.shape)
        assert case.label is not None
        write_volume(case.image, (volume.array + rough * noise).astype(np.float32), volume.affine)
        write_mask(case.label, rough, volume.affine)
    fill_store(experiment, root)
    bench = Workbench.open(experiment, root)
    (trial,) = trials_of(experiment)
    train_trial(bench, trial)
    evaluate_trial(bench, trial)
    folder = bench.folder(trial)
    register(root, folder / "bundle", "tiny")
    case = study.split("test")[0]
    return Registered(root, case, folder / "evaluation" / "masks" / f"{case.id}.nii.gz")


@contextmanager
def serving(root: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`dropgen serve` as a shell starts it: a process group of its own, which Ctrl-C reaches whole."""
    command = [sys.executable, "-m", "dropgen", "serve", "--name", "tiny", "--port", "0", "--json", "--root", str(root)]
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:  # a test failed before it stopped the server
            for relative in [*family.children(recursive=True), family]:
                relative.kill()


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def replicas_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [relative for relative in family_of(process) if "ServeReplica" in "".join(relative.cmdline()[:1])]


def assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [relative.name() for relative in alive]


@pytest.mark.slow
def test_mask_over_http_is_the_one_evaluate_wrote_and_ctrl_c_leaves_nothing(
    registered: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(registered.root) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        assert ready["ready"] is True
        assert ready["model"]["uri"] == "models:/tiny@champion"
        port = int(ready["url"].rpartition(":")[2])
        family = family_of(server)
        names = " ".join(relative.name() for relative in family)
        assert "raylet" in names

        token = client_token(registered.root, None, ready["url"])
        assert token is not None
        with pytest.raises(ServiceError, match="token"):
            Client(ready["url"]).segment(registered.case.image)
        served = Client(ready["url"], token).segment(registered.case.image).volume
        written = read_mask(registered.evaluated)
        np.testing.assert_array_equal(served.array, written.array)
        np.testing.assert_array_equal(served.affine, written.affine)
        assert 0 < np.count_nonzero(written.array) < written.array.size

        listening = {
            connection.laddr.ip
            for relative in family
            for connection in relative.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        }
        assert listening == {"127.0.0.1"}

        scans, masks = tmp_path / "scans", tmp_path / "masks"
        scans.mkdir()
        shutil.copy(registered.case.image, scans / "good.nii.gz")
        (scans / "broken.nii.gz").write_bytes(registered.case.image.read_bytes()[:-50])
        remote = ["segment", str(scans), str(masks), "--url", ready["url"], "--json", "--root", str(registered.root)]
        assert main(remote) == 2
        assert "1 of 2 scans failed: broken.nii.gz" in capsys.readouterr().err
        np.testing.assert_array_equal(read_mask(masks / "good.nii.gz").array, written.array)
        (scans / "broken.nii.gz").unlink()
        here = ["segment", str(scans), str(masks), "--name", "tiny", "--root", str(registered.root), "--json"]
        capsys.readouterr()
        assert main(here) == 0
        assert json.loads(capsys.readouterr().out)["skipped"] == 1  # the same model by another way

        assert main(["serve", "--name", "tiny", "--port", str(port), "--root", str(registered.root)]) == 2
        assert f"127.0.0.1:{port}" in capsys.readouterr().err

        on_its_way, stopping = threading.Event(), threading.Event()

        def halting() -> Iterator[bytes]:
            body = registered.case.image.read_bytes()
            yield body[: len(body) // 2]
            on_its_way.set()
            stopping.wait(STOP_SECONDS)
            yield body[len(body) // 2 :]

        headers, metrics = {"Authorization": f"Bearer {token}"}, f"{ready['url']}/metrics"
        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(
                httpx.post, f"{ready['url']}/v1/segment", content=halting(), headers=headers, timeout=STOP_SECONDS
            )
            assert on_its_way.wait(STOP_SECONDS)
            deadline = time.monotonic() + STOP_SECONDS
            while "dropgen_queue_length 1.0" not in httpx.get(metrics, headers=headers).text:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(server.pid, signal.SIGINT)
            time.sleep(1)
            with pytest.raises(ServiceError, match=r"starting, stopping or busy|cannot be reached"):
                Client(ready["url"], token, patience=0).segment(registered.case.image)  # nobody new is let in
            stopping.set()
            answer = accepted.result(STOP_SECONDS)
        assert answer.status_code == 200, answer.text  # it was there first, so it is answered
        np.testing.assert_array_equal(volume_from_bytes(answer.content).array, written.array)
        out, err = server.communicate(timeout=STOP_SECONDS)
        assert server.returncode == 0, err
        assert out == ""
        assert_gone(family)
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.nightly
@pytest.mark.slow
def test_a_replica_that_keeps_too_much_memory_is_replaced_and_no_request_is_lost(registered: Registered) -> None:
    with serving(registered.root, "--margin-gb", "0.001") as server:  # the first mask leaves more than that behind
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        token = client_token(registered.root, None, url)
        client, (first,) = Client(url, token), replicas_of(server)
        mask = client.segment(registered.case.image).volume
        deadline = time.monotonic() + START_SECONDS
        while first.is_running() or not replicas_of(server):
            assert time.monotonic() < deadline
            again = client.segment(registered.case.image).volume  # waits while the one ends and the other starts
            np.testing.assert_array_equal(again.array, mask.array)
            time.sleep(0.5)
        headers = {"Authorization": f"Bearer {token}"}
        while not (answer := httpx.get(f"{url}/metrics", headers=headers)).is_success:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert "dropgen_replicas_replaced_total 1.0" in answer.text
        os.killpg(server.pid, signal.SIGINT)
        _, err = server.communicate(timeout=STOP_SECONDS)
        assert server.returncode == 0, err
    lines = (registered.root / "service" / "requests.jsonl").read_text().splitlines()
    events = [line for line in map(json.loads, lines) if "event" in line]
    assert events
    assert all(event["rss_bytes"] > event["bound_bytes"] for event in events)


@pytest.mark.nightly
@pytest.mark.slow
def test_what_a_replica_died_of_is_told_in_one_sentence_and_another_takes_its_place(registered: Registered) -> None:
    with serving(registered.root) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        client, (victim,) = Client(url, client_token(registered.root, None, url)), replicas_of(server)
        time.sleep(5)  # it is known to those who watch
        victim.kill()
        assert client.segment(registered.case.image).volume.array.any()
        os.killpg(server.pid, signal.SIGINT)
        _, err = server.communicate(timeout=STOP_SECONDS)
        assert err.count("a replica died, its process was killed, likely for want of memory; Serve starts another") == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_termination_while_starting_leaves_nothing(registered: Registered) -> None:
    with serving(registered.root) as server:
        deadline = time.monotonic() + START_SECONDS
        while not any("raylet" in relative.name() for relative in family_of(server)) and time.monotonic() < deadline:
            time.sleep(0.05)
        family = family_of(server)
        assert family
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=STOP_SECONDS)
        assert server.returncode != 0, err
        assert out == ""
        assert_gone(family)


def test_no_champion_is_one_sentence_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--name", "nobody", "--port", "0", "--root", str(tmp_path)]) == 2
    assert "dropgen register" in capsys.readouterr().err
    assert not raylets_of_this_process()


def test_damaged_bundle_is_one_sentence_before_ray_starts(
    registered: Registered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(registered.root / "mlflow", root / "mlflow")
    weights = fetch(root, "tiny") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["serve", "--name", "tiny", "--port", "0", "--root", str(root)]) == 2
    assert "weights.safetensors" in capsys.readouterr().err
    assert not raylets_of_this_process()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.7.7", "example.org"])
def test_addresses_that_others_reach_are_refused_without_a_chosen_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["serve", "--host", host, "--root", str(tmp_path)]) == 2
    assert f"--host {host}" in capsys.readouterr().err


def test_an_open_address_without_a_token_is_refused_also_when_told_not_to_care(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--insecure", "--root", str(tmp_path)]) == 2
    assert "--insecure would let everybody" in capsys.readouterr().err
    assert not (tmp_path / "service").exists()


@pytest.mark.parametrize(("most", "wanted"), [(1, None), (4, (1, 4, 2))])
def test_more_replicas_are_asked_for_under_load_alone_and_up_to_the_stated_number(
    tmp_path: Path, most: int, wanted: tuple[int, int, int] | None
) -> None:
    plan = Deployment(tmp_path, "tiny@champion", Tokens({}), 1, most)
    scaling = application(plan, threads=1, gpus=0)._bound_deployment._deployment_config.autoscaling_config
    asked = None if scaling is None else (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests)
    assert asked == wanted


@pytest.mark.parametrize("margin", ["-1", "nan"])
def test_a_margin_that_no_replica_keeps_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], margin: str
) -> None:
    assert main(["serve", f"--margin-gb={margin}", "--root", str(tmp_path)]) == 2
    assert "would replace every replica" in capsys.readouterr().err


def test_no_replica_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "0", "--root", str(tmp_path)]) == 2
    assert "--replicas 0" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_impossible_port_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert main(["serve", f"--port={port}", "--root", str(tmp_path)]) == 2
    assert "choose another --port" in capsys.readouterr().err


def raylets_of_this_process() -> list[str]:
    return [child.name() for child in psutil.Process().children(recursive=True) if "raylet" in child.name()]
