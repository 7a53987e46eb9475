"""A real Orthanc of the machine on free loopback ports, in a temporary folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset

from tests_support.dicom import packed

PLUGINS = Path("/usr/share/orthanc/plugins")
USER, PASSWORD = "radiology", "open-sesame"
START_SECONDS = 30


@dataclass(frozen=True)
class Orthanc:
    """One that answers.

    Attributes:
        url: Of its own interface.
        port: For DICOM.
    """

    url: str
    port: int

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def ask(self, path: str) -> Any:
        answer = httpx.get(self.url + path, auth=(USER, PASSWORD), trust_env=False)
        answer.raise_for_status()
        return answer.json()

    def add(self, slices: Iterable[Dataset]) -> None:
        with httpx.Client(auth=(USER, PASSWORD), trust_env=False) as client:
            for one in slices:
                client.post(f"{self.url}/instances", content=packed(one).getvalue()).raise_for_status()

    def push(self, series: str, modality: str) -> None:
        """Sends one of its series by C-STORE."""
        with httpx.Client(auth=(USER, PASSWORD), trust_env=False, timeout=60) as client:
            client.post(f"{self.url}/modalities/{modality}/store", json=series).raise_for_status()

    def file(self, sop_instance_uid: str) -> bytes:
        body = {"Level": "Instance", "Query": {"SOPInstanceUID": sop_instance_uid}}
        with httpx.Client(auth=(USER, PASSWORD), trust_env=False) as client:
            (found,) = client.post(f"{self.url}/tools/find", json=body).json()
            return client.get(f"{self.url}/instances/{found}/file").content


@contextmanager
def running(folder: Path, modalities: dict[str, list[Any]] | None = None) -> Iterator[Orthanc]:
    """Starts one, or skips the test where there is none."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    plugin = next(iter(PLUGINS.glob("libOrthancDicomWeb.so*")), None)
    if program is None or plugin is None:
        pytest.skip("no Orthanc with DICOMweb on this machine: apt-get install orthanc orthanc-dicomweb")
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)], "HttpPort": http, "HttpBindAddresses": ["127.0.0.1"], "HttpServerEnabled": True,
        "DicomPort": dicom, "DicomAet": "ORTHANC", "DicomModalities": modalities or {},
        "RemoteAccessAllowed": False, "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD},
        "UnknownSopClassAccepted": True, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    orthanc = Orthanc(f"http://127.0.0.1:{http}", dicom)
    try:
        _wait(orthanc, process, folder / "log")
        yield orthanc
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait(orthanc: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            orthanc.ask("/system")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"Orthanc did not start: {log.read_text()}")
