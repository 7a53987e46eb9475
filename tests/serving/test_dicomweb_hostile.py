"""What an archive may send that is no answer: over HTTP, from a server that lies in one way each time."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dropgen.errors import DropGenError, ServiceError, TooLargeError, VolumeError
from dropgen.serving.dicomweb import Archive, Remote

pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed: pip install 'dropgen[dicom-net]'")

MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'
JSON = "application/dicom+json"
SERIES = Remote("1.3", "1.2", "CT", None)


def found(uid: str) -> bytes:
    return json.dumps([{"0020000E": {"vr": "UI", "Value": [uid]}, "0020000D": {"vr": "UI", "Value": ["1.2"]}}]).encode()


@contextmanager
def answering(body: bytes, media: str, endless: bool = False, status: int = 200) -> Iterator[Archive]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            if not endless:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has left
                self.wfile.write(body)
                while endless:
                    self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Archive(f"http://127.0.0.1:{server.server_port}/dicom-web/series?PatientID=1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("body", "media", "status", "says"),
    [
        (b"<html>", "text/html", 200, "does not answer as DICOMweb"),
        (b'["x"]', JSON, 200, "does not answer as DICOMweb"),
        (found("../../etc"), JSON, 200, "does not answer as DICOMweb"),
        (b"", JSON, 302, "cannot be reached \\(TooManyRedirects\\)"),
        (b"", JSON, 503, "answers 503 to the search"),
    ],
)
def test_what_is_no_answer_to_a_search_is_one_sentence(body: bytes, media: str, status: int, says: str) -> None:
    with answering(body, media, status=status) as archive, pytest.raises(ServiceError, match=says):
        archive.find()


def test_an_archive_that_repeats_itself_is_asked_no_more() -> None:
    with answering(found("1.3"), JSON) as archive:
        assert archive.find() == [Remote("1.3", "1.2", "", None)]


@pytest.mark.parametrize(
    ("body", "media", "endless", "error"),
    [
        (b"--b\r\nContent-Type: application/dicom\r\n\r\ngarbage\r\n--b--", MULTIPART, False, VolumeError),
        (b"<html>", "text/html", False, VolumeError),
        (b"", MULTIPART, False, VolumeError),
        (b"x" * 10**6, MULTIPART, True, TooLargeError),
    ],
)
def test_what_is_no_series_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, media: str, endless: bool, error: type[DropGenError]
) -> None:
    monkeypatch.setattr("dropgen.serving.dicomweb.SERIES_BYTES", 10**7)
    with answering(body, media, endless) as archive, pytest.raises(error):
        archive.fetch(SERIES, tmp_path / "1.3")
    assert list(tmp_path.iterdir()) == []
