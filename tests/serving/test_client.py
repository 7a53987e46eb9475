from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dropgen.errors import DropGenError, ServiceError, VolumeError
from dropgen.features.studies.volume import Volume, write_volume
from dropgen.serving.client import Client


@contextmanager
def answering(status: int, kind: str, body: bytes) -> Iterator[str]:
    """An address at which everything gets this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


SENTENCE = "the mask was not made within 900 s; send the volume to /v1/jobs"


@pytest.mark.parametrize(
    ("status", "kind", "body", "error", "told"),
    [
        (504, "application/json", json.dumps({"error": SENTENCE}).encode(), VolumeError, SENTENCE),
        (504, "text/html", b"<h1>Gateway Timeout</h1>", ServiceError, "starting, stopping or busy"),
        (503, "text/plain", b"no replica", ServiceError, "starting, stopping or busy"),
        (401, "application/json", b'{"error": "this service asks for a token"}', ServiceError, "asks for a token"),
        (413, "application/json", b'{"error": "the volume is larger"}', VolumeError, "is larger"),
    ],
)
def test_what_the_service_says_is_told_and_a_proxys_word_is_not_taken_for_it(
    tmp_path: Path,
    oblique_volume: Callable[[int], Volume],
    status: int,
    kind: str,
    body: bytes,
    error: type[DropGenError],
    told: str,
) -> None:
    volume = oblique_volume(0)
    write_volume(tmp_path / "scan.nii", volume.array, volume.affine)
    with answering(status, kind, body) as url, pytest.raises(error, match=told):
        Client(url, "a" * 20, patience=0).segment(tmp_path / "scan.nii")


def test_a_mask_without_the_services_headers_is_not_taken(
    tmp_path: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    volume = oblique_volume(0)
    write_volume(tmp_path / "scan.nii", volume.array, volume.affine)
    with answering(200, "application/gzip", b"") as url, pytest.raises(ServiceError, match="without X-Dropgen-Flags"):
        Client(url, patience=0).segment(tmp_path / "scan.nii")
