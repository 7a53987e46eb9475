"""The listener, by real associations on loopback: who may send, what becomes of every series, and what a kill costs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian

from dropgen.__main__ import main
from dropgen.errors import ConfigError, ServiceError, TooLargeError, VolumeError
from dropgen.features.studies.volume import Volume, read_mask
from dropgen.manifest import REPOSITORY
from dropgen.serving.apart import ReadApart
from dropgen.serving.cases import Scan
from dropgen.serving.dicom_net import Peer, receiving, send
from dropgen.serving.journal import Journal
from dropgen.serving.listen import Listener
from dropgen.serving.spool import Bounds, Spool
from tests_support.dicom import make_slices
from tests_support.orthanc import free_port, running

net = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: pip install 'dropgen[dicom-net]'")

GOOD, GAP, SCOUT, HOSTILE = (UID(f"1.2.3.{number}") for number in (4, 5, 6, 7))
PIXELS = bytes.fromhex("e07f1000") + b"OW\0\0"  # tag and VR of Pixel Data, before its length
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.66.4")


@pytest.fixture
def slices(oblique_volume: Any) -> Any:
    volume = oblique_volume(0)
    volume = Volume(np.rint(volume.array), volume.affine)
    return lambda series=GOOD: make_slices(volume, series)


def push(port: int, images: Sequence[Dataset], calling: str = "SCANNER", called: str = "DROPGEN") -> list[int]:
    """What a scanner does; the status of each image, none where it may not send."""
    entity = net.AE(calling)
    entity.add_requested_context(images[0].SOPClassUID, [ExplicitVRLittleEndian])
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return []
    told = [association.send_c_store(image).get("Status", -1) for image in images]
    association.release()
    return told


@dataclass
class Archive:
    """An archive that keeps what it is sent, of the classes that it knows."""

    classes: tuple[str, ...] = SEGMENTATIONS
    status: int = 0x0000
    kept: list[Dataset] = field(default_factory=list)

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[Peer]:
        def keep(event: Any) -> int:
            data = event.dataset
            data.file_meta = event.file_meta
            self.kept.append(data)
            return self.status

        entity = net.AE("PACS")
        for one in self.classes:
            entity.add_supported_context(one, [ExplicitVRLittleEndian])
        handlers = [(net.evt.EVT_C_STORE, keep)]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield Peer("PACS", "127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()


def test_only_named_titles_may_send_and_only_sound_images_are_kept_under_their_own_names(
    tmp_path: Path, slices: Any
) -> None:
    spool = Spool(tmp_path)
    with receiving(spool, "DROPGEN", "127.0.0.1", 0, ["SCANNER"]) as port:
        assert push(port, slices(), calling="OTHER") == []
        assert push(port, slices(), called="ANY") == []
        assert push(port, slices()) == [0] * 19
        assert push(port, slices()[:1]) == [0]
        for name, value in (("SeriesInstanceUID", "../../x"), ("SOPInstanceUID", "1/2"), ("SeriesInstanceUID", "")):
            (bad,) = slices()[:1]
            setattr(bad, name, UID(value))
            assert push(port, [bad]) in ([0xC000], [0xA900], [-1]), name
        (report,) = slices()[:1]
        report.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.88.11")
        assert push(port, [report]) == []
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.dcm"))
    assert names == sorted(f"incoming/{GOOD}/{GOOD}.{index + 1}.dcm" for index in range(19))
    assert {path.name for path in tmp_path.iterdir()} == {"incoming", "lock", "quarantine", "ready"}
    assert dcmread(tmp_path / "incoming" / GOOD / f"{GOOD}.3.dcm").PixelData == slices()[2].PixelData


def test_what_crosses_a_bound_is_refused_and_its_series_put_aside_with_the_cause(
    tmp_path: Path, slices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, Bounds(instances=18, series=2, free_bytes=0))
    with receiving(spool, "DROPGEN", "127.0.0.1", 0, []) as port:
        assert push(port, slices()) == [0] * 18 + [0xA700]
        assert push(port, slices(GAP)[:2]) == [0, 0]
        assert push(port, slices(SCOUT)[:1]) == [0xA700]
        with monkeypatch.context() as patch:
            patch.setattr("dropgen.serving.dicom_net.INSTANCE_BYTES", 500)
            assert push(port, slices(GAP)[2:3]) == [-1]
        assert push(port, slices(GAP)[2:3]) == [0]
    spool.settle(0)
    with pytest.raises(VolumeError, match="more than 18 slices"):
        spool.begin(tmp_path / "ready" / GOOD)
    full = Spool(tmp_path / "full", Bounds(free_bytes=2**80))
    with receiving(full, "DROPGEN", "127.0.0.1", 0, []) as port:
        assert push(port, slices()[:1]) == [0xA700]


def test_a_series_is_complete_after_the_quiet_time_and_a_late_slice_joins_what_is_in_quarantine(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put("1.2", "1.2.1", b"a", "SCANNER")
    spool.settle(60)
    assert spool.ready() == []
    spool.settle(0)
    (folder,) = spool.ready()
    spool.put("1.2", "1.2.2", b"b", "SCANNER")
    spool.settle(0)
    assert sorted(path.name for path in folder.glob("*.dcm")) == ["1.2.1.dcm"]  # it is being worked on
    spool.quarantine(folder, "1 missing")
    assert (tmp_path / "quarantine" / "1.2" / "cause.txt").read_text() == "1 missing\n"
    spool.settle(0)
    assert sorted(path.name for path in folder.glob("*.dcm")) == ["1.2.1.dcm", "1.2.2.dcm"]
    assert not (tmp_path / "quarantine" / "1.2").exists()


def test_two_listeners_cannot_have_one_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(ConfigError, match="another listener works on"):
        Spool(tmp_path)
    assert spool.ready() == []


def test_a_series_at_which_listeners_died_is_not_tried_for_ever(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put("1.2", "1.2.1", b"a", "SCANNER")
    spool.settle(0)
    (folder,) = spool.ready()
    for _ in range(3):
        spool.begin(folder)
    with pytest.raises(VolumeError, match="died 3 times at this series"):
        spool.begin(folder)


def test_a_destination_that_is_away_is_waited_for_and_one_that_refuses_costs_its_series_alone(tmp_path: Path) -> None:
    spool, tries = Spool(tmp_path), []

    def deliver(path: Path, sender: str) -> None:
        tries.append((path.name, sender))
        raise ServiceError("away") if path.name.startswith("1.2.") else VolumeError("refused")

    def segment(folder: Path, target: Path) -> dict[str, Any]:
        return {"cases": [{"outcome": "done"}]}

    listener = Listener(spool, tmp_path / "results", segment, deliver, Journal(tmp_path / "series.jsonl"))
    for series in ("1.2", "1.3"):
        spool.put(series, f"{series}.1", b"a", "SCANNER")
    for _ in range(3):
        listener.work(0)
    assert sorted(tries) == [("1.2.seg.dcm", "SCANNER"), ("1.3.seg.dcm", "SCANNER")]
    assert [folder.name for folder in spool.ready()] == ["1.2"]
    assert (tmp_path / "quarantine" / "1.3" / "cause.txt").read_text() == "refused\n"


def test_a_file_is_pushed_or_it_is_said_whether_to_try_again(tmp_path: Path, slices: Any) -> None:
    path = tmp_path / "x.dcm"
    (image,) = slices()[:1]
    image.save_as(path, enforce_file_format=True)
    away = Peer("PACS", "127.0.0.1", free_port())
    with pytest.raises(ServiceError, match="cannot be reached or rejects DROPGEN"):
        send(path, away, "DROPGEN")
    with Archive().listening() as peer, pytest.raises(VolumeError, match="takes no CT Image Storage"):
        send(path, peer, "DROPGEN")
    for status, error in ((0xA700, ServiceError), (0xC001, VolumeError)):
        with Archive((image.SOPClassUID,), status).listening() as peer, pytest.raises(error):
            send(path, peer, "DROPGEN")
    archive = Archive((image.SOPClassUID,), 0xB000)
    with archive.listening() as peer:
        assert send(path, peer, "DROPGEN") == image.SOPInstanceUID
    assert archive.kept[0].PixelData == image.PixelData


@contextmanager
def listen(root: Path, bundle: Path, *words: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dropgen listen` as a process of its own; its port."""
    command = [sys.executable, "-m", "dropgen", "listen", "--json", "--port", "0", "--bundle", bundle, "--root", root]
    process = subprocess.Popen(
        [*map(str, command), *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        stderr=(root.parent / "listen.log").open("a"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["port"]
    finally:
        process.terminate()
        process.wait(30)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def told(root: Path) -> dict[str, dict[str, Any]]:
    path = root / "listen" / "series.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["series"]: line for line in lines}


def claim_4_gib(path: Path) -> None:
    """Lets a slice say that its pixels are more than any memory holds."""
    content = bytearray(path.read_bytes())
    at = content.index(PIXELS) + len(PIXELS)
    content[at : at + 4] = bytes.fromhex("f0ffffff")
    path.write_bytes(content)


def test_a_hostile_series_costs_its_reader_and_nothing_of_this_process(tmp_path: Path, slices: Any) -> None:
    folder, read = tmp_path / HOSTILE, ReadApart()
    folder.mkdir()
    for index, one in enumerate(slices(HOSTILE)):
        one.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    scan = Scan(str(HOSTILE), str(HOSTILE), tuple(sorted(folder.glob("*.dcm"))), series=True)
    here = scan.load()
    with read(scan) as loaded:
        np.testing.assert_array_equal(loaded.channels[0].array, here.channels[0].array)
        np.testing.assert_array_equal(loaded.channels[0].affine, here.channels[0].affine)
        headers = [dcmread(path) for path in loaded.slices]
    order = [dcmread(path).InstanceNumber for path in here.slices]
    assert ([header.InstanceNumber for header in headers], loaded.tag) == (order, "CT")
    assert not any("PixelData" in header for header in headers)
    claim_4_gib(folder / "3.dcm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeError, match="the series takes more memory to read than its header"), read(scan):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
    assert {path.suffix for path in folder.iterdir()} == {".dcm"}


@pytest.mark.slow
def test_every_accepted_series_ends_as_a_pushed_dicom_seg_or_in_quarantine_though_the_listener_is_killed(
    tmp_path: Path, bundle: Path, slices: Any
) -> None:
    root, archive = tmp_path / "runs", Archive()
    root.mkdir()
    gap, scout = slices(GAP), slices(SCOUT)[:3]
    del gap[2]
    for one in scout:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with archive.listening() as peer:
        words = ("--accept", "SCANNER", "--to", str(peer), "--quiet")
        with listen(root, bundle, *words, "600") as (process, port):
            for images in (slices(), gap, scout, slices(HOSTILE)):
                assert set(push(port, images)) == {0}
            os.kill(process.pid, signal.SIGKILL)
        claim_4_gib(root / "listen" / "incoming" / HOSTILE / f"{HOSTILE}.3.dcm")
        assert told(root) == {}
        with listen(root, bundle, *words, "1") as (process, port):
            wait_for(lambda: len(told(root)) == 4)
            process.terminate()
            assert process.wait(30) == 0
    ended = told(root)
    assert {uid: line["outcome"] for uid, line in ended.items()} == {
        str(GOOD): "done", str(GAP): "quarantined", str(SCOUT): "quarantined", str(HOSTILE): "quarantined",
    }  # fmt: skip
    assert "more memory to read than its header promises" in ended[str(HOSTILE)]["cause"]
    assert "1 missing between slices 4 and 2" in ended[str(GAP)]["cause"]
    assert "localizer" in ended[str(SCOUT)]["cause"]
    (seg,) = archive.kept
    mask = read_mask(root / "listen" / "results" / GOOD / f"{GOOD}.nii.gz")
    assert [np.count_nonzero(seg.pixel_array == value) for value in (1, 2)] == [
        np.count_nonzero(mask.array == value) for value in (1, 2)
    ]
    assert (seg.PatientID, seg.StudyInstanceUID) == (slices()[0].PatientID, slices()[0].StudyInstanceUID)
    lines = [json.loads(line) for line in (root / "service" / "audit.jsonl").read_text().splitlines()]
    assert [line["sop_instance_uid"] for line in lines] == [seg.SOPInstanceUID] * 2
    assert (lines[1]["stored"], lines[1]["received_from"]) == (str(peer), "SCANNER")
    left = {path.name for path in (root / "listen").glob("*/*") if path.is_dir()}
    assert left == {str(GOOD), str(GAP), str(SCOUT), str(HOSTILE)}
    assert not (root / "listen" / "ready" / GOOD).exists()
    log = (tmp_path / "listen.log").read_text() + json.dumps(lines) + json.dumps(ended)
    assert "Meier" not in log


@pytest.mark.slow
def test_an_orthanc_sends_a_series_and_gets_its_dicom_seg_into_the_same_study(
    tmp_path: Path, bundle: Path, slices: Any
) -> None:
    root, port = tmp_path / "runs", free_port()
    root.mkdir()
    with running(tmp_path / "orthanc", {"dropgen": ["DROPGEN", "127.0.0.1", port]}) as orthanc:
        orthanc.add(slices())
        words = ("--port", port, "--accept", "ORTHANC", "--to", f"ORTHANC@127.0.0.1:{orthanc.port}", "--quiet", "1")
        with listen(root, bundle, *words):
            (series,) = orthanc.ask("/series")
            orthanc.push(series, "dropgen")
            wait_for(lambda: len(orthanc.ask("/series")) == 2)
        (study,) = orthanc.ask("/studies")
        (added,) = set(orthanc.ask("/series")) - {series}
        assert orthanc.ask(f"/series/{added}")["ParentStudy"] == study
        assert orthanc.ask(f"/series/{added}")["MainDicomTags"]["Modality"] == "SEG"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0"), "nobody was named who may call; give --accept TITLE"),
        (("--host", "pacs.local", "--accept", "A"), "is no IPv4 address"),
        (("--aet", "A" * 17), "is no AE title"),
        (("--accept", "A\\B"), "is no AE title"),
        (("--to", "PACS:104"), "is no destination"),
        (("--to", "PACS@10.0.0.5:0"), "is no destination"),
        (("--quiet", "0"), "would take a series apart"),
    ],
)
def test_what_would_let_anybody_in_or_means_nothing_is_refused_in_one_sentence(
    tmp_path: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["listen", "--root", str(tmp_path), *words]) == 2
    err = capsys.readouterr().err
    assert (says in err, err.count("\n")) == (True, 1)


def test_a_destination_is_read_as_it_is_written() -> None:
    assert Peer.parse("MY PACS@10.0.0.5:11112") == Peer("MY PACS", "10.0.0.5", 11112)
    with pytest.raises(ConfigError):
        Peer.parse("PACS@host:port")
