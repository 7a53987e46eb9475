"""What the client does while a service is busy, dies, or works on a job, against a server that plays all of these."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dropgen.errors import ServiceError, VolumeError
from dropgen.features.studies.volume import Volume, mask_to_bytes, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.serving import client as client_module
from dropgen.serving.client import Client
from tests_support.live import live

MASK = mask_to_bytes(np.ones((3, 4, 5), np.uint8), np.eye(4))
BUSY = (429, "application/json", b'{"error": "16 volumes are waiting already"}', {"Retry-After": "0.3"})
DIED = (500, "text/plain", b"Internal Server Error", {})
NOBODY = (503, "text/plain", b"no replica", {})
NO_ROUTE = (404, "text/plain", b"Path '/v1/segment' not found", {})  # Serve's proxy, of an application that stops
DONE = (200, "application/gzip", MASK, {"X-Dropgen-Flags": "[]"})
Reply = tuple[int, str, bytes, dict[str, str]]


@dataclass
class Played:
    """A server that gives its replies in order, and what it was asked."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@contextmanager
def playing(*replies: Reply) -> Iterator[Played]:
    played = Played(replies=list(replies))

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            played.seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            played.times.append(time.monotonic())
            status, kind, body, headers = played.replies.pop(0)
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    played.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def scan(tmp_path: Path, oblique_volume: Callable[[int], Volume]) -> Path:
    volume = oblique_volume(0)
    write_volume(tmp_path / "scan.nii", volume.array, volume.affine)
    return tmp_path / "scan.nii"


def job(state: str, **more: str) -> Reply:
    return 200, "application/json", json.dumps({"id": "ab" * 16, "state": state, **more}).encode(), {}


def test_a_full_queue_a_dead_replica_and_none_at_all_are_waited_for_with_one_request_id(scan: Path) -> None:
    with playing(BUSY, DIED, NOBODY, NO_ROUTE, DONE) as server:
        answer = Client(server.url).ask(scan.read_bytes(), "application/octet-stream", "scan")
    assert (answer.mask, answer.tries) == (MASK, 5)
    assert {headers["x-request-id"] for _, _, headers in server.seen} == {answer.request}
    assert ["x-dropgen-retry" in headers for _, _, headers in server.seen] == [False, True, True, True, True]
    assert server.times[1] - server.times[0] >= 0.3  # as long as it was told


def test_patience_with_a_service_that_does_not_answer_ends_and_an_interrupt_ends_it_at_once(scan: Path) -> None:
    with playing(NOBODY, NOBODY) as server, pytest.raises(ServiceError, match="answers 503"):
        Client(server.url, patience=0.1).segment(scan)
    assert len(server.seen) == 2
    with playing(NO_ROUTE) as server, pytest.raises(ServiceError, match="answers 404"):
        Client(server.url, patience=0).segment(scan)
    missing = (404, "application/json", b'{"error": "no model of this name"}', {})
    with playing(missing) as server, pytest.raises(VolumeError, match="no model of this name"):
        Client(server.url).segment(scan)
    stop = threading.Event()
    stop.set()
    with playing((*BUSY[:3], {"Retry-After": "3600"})) as server, pytest.raises(ServiceError, match="not waited for"):
        Client(server.url, stop=stop).segment(scan)


def test_a_volume_that_takes_every_replica_with_it_is_refused_and_no_more_is_said_of_the_service(scan: Path) -> None:
    with playing(DIED, DIED, DIED) as server, pytest.raises(VolumeError, match="answered 500"):
        Client(server.url, patience=0).segment(scan)


def test_a_large_volume_goes_as_one_job_whatever_is_sent_again(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "JOB_BYTES", 100)
    accepted = (202, *job("accepted")[1:])
    replies = (DIED, accepted, job("running"), NOBODY, job("done"), DONE)
    with playing(*replies) as server:
        mask = Client(server.url).segment(scan, "ct").volume
    np.testing.assert_array_equal(mask.array, np.ones((3, 4, 5)))
    paths = [(method, path) for method, path, _ in server.seen]
    assert paths[:2] == [("POST", "/v1/jobs?modality=ct")] * 2
    assert paths[2:5] == [("GET", f"/v1/jobs/{'ab' * 16}")] * 3
    assert paths[5] == ("GET", f"/v1/jobs/{'ab' * 16}/result")
    assert len({headers["idempotency-key"] for method, _, headers in server.seen if method == "POST"}) == 1


def test_a_job_that_failed_is_told_in_the_services_words(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "JOB_BYTES", 100)
    failed = job("failed", error="the volume is truncated")
    with playing((202, *job("accepted")[1:]), failed) as server, pytest.raises(VolumeError, match="is truncated"):
        Client(server.url).segment(scan)


def test_a_job_gives_the_mask_that_a_request_gives(
    scan: Path, registry: Path, segmenter: Segmenter, oblique_volume: Callable[[int], Volume],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with live(registry, "blobs@champion", None) as url:
        at_once = Client(url).segment(scan).volume
        monkeypatch.setattr(client_module, "JOB_BYTES", 100)
        as_job = Client(url).segment(scan).volume
    np.testing.assert_array_equal(as_job.array, at_once.array)
    np.testing.assert_array_equal(as_job.array, segmenter.predict(oblique_volume(0)))
