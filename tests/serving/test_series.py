"""Zips of DICOM series: forged sizes, bombs, paths in names, and the one mask that a good one must give."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import dcmread

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.dicom import read_series
from dropgen.features.studies.volume import Volume, mask_to_bytes, volume_from_bytes
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.api import create_api
from dropgen.serving.engine import work_once
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.series import unzip
from dropgen.serving.tokens import Tokens
from dropgen.serving.upload import Caps, receive
from tests_support.dicom import make_slices, members, packed, zipped
from tests_support.service import call

ZIP = {"Content-Type": "application/zip"}
REFUSED = {"/v1/segment": 400, "/v1/jobs": 409}  # a job that was refused later has no mask


def scan() -> Volume:
    noise = np.random.default_rng(3).normal(size=(23, 17, 19)).cumsum(axis=0)
    affine = np.array([[0.0, -0.9, 0, 12], [1.3, 0, 0, -31.5], [0, 0, -1.7, 7], [0, 0, 0, 1]])
    return Volume(np.rint(100 * noise).astype(np.float32), affine)


@pytest.fixture(scope="module")
def served(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `plain`, and `scaled` that has a rule of intensity for each modality."""
    root = tmp_path_factory.mktemp("series")
    for name, intensity in (("plain", "minmax"), ("scaled", {"ct": "minmax", "mr": "percentile"})):
        spec = segmenter.spec.model_copy(update={"intensity": intensity})
        Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(root / name / "bundle")
        register(root, root / name / "bundle", name)
    return root


def post(root: Path, body: bytes, path: str = "/v1/segment", **request: object) -> httpx.Response:
    api, engine, jobs = create_api(root, Models(root, "plain@champion", 2**30), Tokens({}), Limits(2**27))
    answer = call(api, "POST", path, content=body, **request)
    if answer.status_code != 202:
        return answer
    assert work_once(engine, jobs, Limits(1).job_caps)
    return call(api, "GET", f"/v1/jobs/{answer.json()['id']}/result")


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/jobs"])
def test_a_zip_of_a_series_gets_the_mask_of_its_volume_in_the_scanners_space(
    served: Path, segmenter: Segmenter, path: str
) -> None:
    answer = post(served, zipped(scan()), path)
    assert answer.status_code == 200, answer.text
    mask = volume_from_bytes(answer.content)
    volume = read_series([packed(one) for one in make_slices(scan())], 10**6).volume
    np.testing.assert_array_equal(mask.array, segmenter.predict(volume))
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-4)
    assert mask.array.any()
    logs = "".join(path.read_text() for path in (served / "service").glob("*.jsonl"))
    assert "Meier" not in logs + str(answer.headers)


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/jobs"])
def test_who_accepts_dicom_gets_a_dicom_seg_on_the_slices_that_were_sent(
    served: Path, segmenter: Segmenter, path: str
) -> None:
    log = served / "service" / "audit.jsonl"
    accept = {"Accept": "application/dicom"}
    answer = post(served, zipped(scan()), path, headers=ZIP | accept)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/dicom"
    data = dcmread(io.BytesIO(answer.content))
    slices = make_slices(scan())
    mask = segmenter.predict(read_series([packed(one) for one in slices], 10**6).volume)
    assert (data.PatientID, data.StudyInstanceUID) == (slices[0].PatientID, slices[0].StudyInstanceUID)
    assert [np.count_nonzero(data.pixel_array == value) for value in (1, 2)] == [
        np.count_nonzero(mask == value) for value in (1, 2)
    ]
    positions = {tuple(one.ImagePositionPatient) for one in slices}
    assert {
        tuple(groups.PlanePositionSequence[0].ImagePositionPatient) for groups in data.PerFrameFunctionalGroupsSequence
    } <= positions
    line = json.loads(log.read_text().splitlines()[-1])
    assert line["sop_instance_uid"] == data.SOPInstanceUID
    assert line["output_sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert not list((served / "service" / "spool").iterdir())

    untold = post(served, zipped(scan()), path, headers=accept)
    assert (untold.status_code, "application/zip" in untold.json()["error"]) == (400, True)
    nifti = post(served, mask_to_bytes(mask, np.eye(4)), path, headers=ZIP | accept)
    assert (nifti.status_code, "slices of a DICOM series" in nifti.json()["error"]) == (REFUSED[path], True)


def test_a_job_of_one_format_is_not_the_job_of_the_other(served: Path) -> None:
    key = {"Idempotency-Key": "series-0001"}
    assert post(served, zipped(scan()), "/v1/jobs", headers=ZIP | key | {"Accept": "application/dicom"}).is_success
    other = post(served, zipped(scan()), "/v1/jobs", headers=ZIP | key)
    assert (other.status_code, "another volume, model, modality, format" in other.json()["error"]) == (409, True)


def test_the_modality_is_the_tags_and_a_request_cannot_say_another(served: Path) -> None:
    body = zipped(scan())
    scaled = {"model": "scaled"}
    by_tag = post(served, body, params=scaled, headers=ZIP)
    assert by_tag.status_code == 200, by_tag.text
    assert by_tag.content == post(served, body, params=scaled | {"modality": "ct"}).content
    wrong = post(served, body, params=scaled | {"modality": "mr"}, headers=ZIP)
    assert (wrong.status_code, "DICOM tag says CT" in wrong.json()["error"]) == (400, True)
    untold = post(served, body, params=scaled)
    assert (untold.status_code, "modality" in untold.json()["error"]) == (400, True)


def test_a_series_that_is_no_grid_is_refused_with_its_slice(served: Path) -> None:
    slices = make_slices(scan())
    del slices[4]
    answer = post(served, members({str(index): packed(one).getvalue() for index, one in enumerate(slices)}))
    assert answer.status_code == 400
    assert "1 missing between slices 6 and 4" in answer.json()["error"]


def forged(content: bytes, size: int) -> bytes:
    """A zip whose records say that its only member unfolds to `size` bytes."""
    body = bytearray(members({"a": content}))
    struct.pack_into("<I", body, 22, size)
    struct.pack_into("<I", body, body.index(b"PK\x01\x02") + 24, size)
    return bytes(body)


def encrypted() -> bytes:
    body = bytearray(members({"a": b"x"}))
    for at in (6, body.index(b"PK\x01\x02") + 8):
        body[at] |= 1
    return bytes(body)


HOSTILE: dict[str, tuple[Callable[[], bytes], type[Exception]]] = {
    "says less than it holds": (lambda: forged(bytes(10**6), 10), VolumeError),
    "says more than it holds": (lambda: forged(bytes(10), 2**32 - 2), VolumeError),
    "a bomb": (lambda: members({"a": bytes(10**7)}), TooLargeError),
    "a bomb in parts": (lambda: members({str(i): bytes(10**5) for i in range(100)}), TooLargeError),
    "too many members": (lambda: members({str(i): b"" for i in range(8193)}), TooLargeError),
    "encrypted": (encrypted, VolumeError),
    "another method": (lambda: members({"a": b"x" * 100}, zipfile.ZIP_LZMA), VolumeError),
    "truncated": (lambda: members({"a": b"x" * 1000}, zipfile.ZIP_STORED)[:-30], VolumeError),
    "changed": (lambda: members({"a": b"x" * 1000}, zipfile.ZIP_STORED).replace(b"xxxx", b"xxyx", 1), VolumeError),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_zip_is_refused(tmp_path: Path, case: str) -> None:
    make, error = HOSTILE[case]
    (tmp_path / "zip").write_bytes(make())
    with pytest.raises(error):
        unzip(tmp_path / "zip", 10**6, "the series")


def test_names_in_a_zip_are_no_paths_and_what_systems_add_is_left_out(tmp_path: Path) -> None:
    files = {
        "../../evil": b"1",
        "/etc/evil": b"2",
        "..\\evil": b"3",
        "__MACOSX/a": b"",
        ".DS_Store": b"",
        "DICOMDIR": b"",
    }
    (tmp_path / "zip").write_bytes(members(files))
    assert [file.read() for file in unzip(tmp_path / "zip", 100, "the series")] == [b"1", b"2", b"3"]
    assert [path.name for path in tmp_path.rglob("*")] == ["zip"]


@pytest.mark.parametrize("step", [1, 3, 10**6])
def test_a_zip_arrives_as_it_was_sent_whatever_its_pieces(tmp_path: Path, step: int) -> None:
    body = members({"a": b"x" * 500})

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    received = asyncio.run(receive(chunks(), None, tmp_path / "volume", Caps()))
    assert (received.path.read_bytes(), received.header) == (body, None)


def test_a_bomb_over_http_is_too_large(served: Path) -> None:
    answer = post(served, members({str(i): bytes(2**20) for i in range(20)}))
    assert answer.status_code == 413, json.loads(answer.text)
