from __future__ import annotations

import asyncio
import gzip
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from html import unescape
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.models import Model
from dropgen.serving.tokens import Tokens
from dropgen.serving.upload import Caps
from tests_support.service import GOOD, HERE, build, call, nifti


@pytest.fixture(scope="module")
def api(registry: Path) -> FastAPI:
    return build(registry)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["nii", "nii.gz"])
def test_mask_is_the_segmenters_own_on_the_grid_that_was_sent(
    api: FastAPI,
    segmenter: Segmenter,
    model: Model,
    oblique_volume: Callable[[int], Volume],
    pack: Callable[[bytes], bytes],
) -> None:
    volume = oblique_volume(3)
    answer = call(api, "POST", "/v1/segment", content=pack(nifti(volume.array, volume.affine)))
    assert answer.status_code == 200, answer.text
    mask = volume_from_bytes(answer.content)
    expected = segmenter.predict(volume)
    np.testing.assert_array_equal(mask.array, expected)
    assert expected.any()
    note = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).header["descrip"].item()
    assert note == b"research use only; blobs 1"
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-5)  # NIfTI stores float32
    assert answer.headers["X-Dropgen-Version"] == "1"
    assert answer.headers["X-Dropgen-Use"] == "research use only"
    assert answer.headers["X-Dropgen-Flags"] == "[]"
    assert answer.headers["X-Dropgen-Model"] == f"models:/blobs@champion; digest={model.digest}"


def test_health_names_the_model(api: FastAPI, model: Model) -> None:
    answer = call(api, "GET", "/healthz")
    assert answer.json()["status"] == "ok"
    assert answer.json()["model"]["digest"] == model.digest
    assert answer.json()["model"]["classes"] == ["background", "left", "right"]


REFUSED = {
    "empty": (b"", "no body"),
    "text": (b"not an image" * 40, "not a NIfTI"),
    "truncated": (nifti(GOOD)[:-9], "truncated"),
    "truncated gzip": (gzip.compress(nifti(GOOD))[:-9], "truncated"),
    "4-D": (nifti(np.ones((4, 4, 4, 2), np.float32)), "4-D"),
    "nan": (nifti(np.where(np.arange(120).reshape(6, 5, 4) == 7, np.nan, GOOD)), "voxel [0, 1, 3]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_upload_is_refused_in_one_sentence(api: FastAPI, case: str) -> None:
    body, word = REFUSED[case]
    answer = call(api, "POST", "/v1/segment", content=body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert word in answer.json()["error"]


@settings(max_examples=10)  # each starts a reader; test_upload flips more of them
@given(data=st.data())
def test_any_flipped_header_byte_gives_a_mask_or_a_refusal(api: FastAPI, data: st.DataObject) -> None:
    body = bytearray(nifti(GOOD))
    body[data.draw(st.integers(0, 351))] ^= data.draw(st.integers(1, 255))
    answer = call(api, "POST", "/v1/segment", content=bytes(body))
    assert answer.status_code in (200, 400, 413), answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["length stated", "length unstated"])
def test_body_over_the_cap_is_refused_as_it_arrives(registry: Path, stream: bool) -> None:
    sent = 0

    async def endless():  # type: ignore[no-untyped-def]
        nonlocal sent
        while True:
            sent += 1000
            yield head if sent == 1000 else bytes(1000)

    head = nifti(np.zeros((30, 30, 30), np.float32))[:1000]
    api = build(registry, caps=Caps(10_000, 10**6, 10**6))
    answer = call(api, "POST", "/v1/segment", content=endless() if stream else bytes(20_000))
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]
    assert sent <= 12_000


def test_small_file_that_claims_giant_voxels_is_refused_with_numbers(api: FastAPI) -> None:
    answer = call(api, "POST", "/v1/segment", content=nifti(GOOD, np.diag([150.0, 150, 150, 1])))
    assert answer.status_code == 413
    assert "GiB" in answer.json()["error"]


def test_wrong_path_and_method_get_a_sentence_too(api: FastAPI) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/segment", 405)):
        answer = call(api, method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_health_answers_while_a_volume_is_segmented(
    api: FastAPI, oblique_volume: Callable[[int], Volume], segmenter: Segmenter
) -> None:
    volume = oblique_volume(4)
    body = nifti(volume.array, volume.affine)

    async def both() -> tuple[list[str], list[bytes]]:
        ended: list[str] = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url=HERE) as client:

            async def noted(name: str, request: object) -> httpx.Response:
                answer = await request  # type: ignore[misc]
                ended.append(name)
                return answer  # type: ignore[no-any-return]

            masks = [asyncio.create_task(noted("mask", client.post("/v1/segment", content=body))) for _ in range(2)]
            await asyncio.sleep(0.05)
            await noted("health", client.get("/healthz"))
            return ended, [(await mask).content for mask in masks]

    ended, masks = asyncio.run(both())
    assert ended[0] == "health"
    assert masks[0] == masks[1]


def test_a_token_is_asked_for_and_nobody_learns_anything_without(registry: Path) -> None:
    api = build(registry, Tokens.of({"anna": "a" * 20}))
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/segment"), ("GET", "/openapi.json")):
        answer = call(api, method, path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert call(api, method, path, headers={"Authorization": "Bearer " + "a" * 19}).status_code == 401
    assert call(api, "GET", "/v1/models", headers={"Authorization": "Bearer " + "a" * 20}).status_code == 200
    assert call(api, "GET", "/healthz").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Host": "rebound.example:8000"}, {"Host": "127.0.0.1.example"}, {"Host": ""}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Origin": "http://127.0.0.1:3000"}],
)  # fmt: skip
def test_without_tokens_no_page_in_a_browser_of_this_machine_can_ask(
    api: FastAPI, registry: Path, headers: dict[str, str]
) -> None:
    answer = call(api, "GET", "/v1/models", headers=headers)
    assert (answer.status_code, list(answer.json())) == (403, ["error"])
    guarded = build(registry, Tokens.of({"anna": "a" * 20}))
    assert call(guarded, "GET", "/v1/models", headers=headers).status_code == 401
    assert call(guarded, "GET", "/v1/models", headers=headers | {"Authorization": "Bearer " + "a" * 20}).is_success


def test_without_tokens_this_machine_and_the_services_own_pages_can_ask(api: FastAPI) -> None:
    for headers in ({"Host": "localhost:8000"}, {"Host": "[::1]:8000"}, {"Origin": HERE}):
        assert call(api, "GET", "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("length", ["9" * 5000, "9" * 19, "-1", "1e9", "\u00b2"])
def test_a_forged_length_is_too_large_or_not_believed(api: FastAPI, length: str) -> None:
    headers = [(b"Content-Length", length.encode("latin-1"))]
    answer = call(api, "POST", "/v1/segment", content=nifti(GOOD), headers=headers)
    assert answer.status_code == (413 if length.startswith("9") else 200), answer.text


def test_a_full_disk_is_a_507_that_leaves_nothing(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, *_: object) -> Path:
        made = Path(tempfile.mkdtemp(dir=registry / "service" / "spool"))
        (made / "volume.nii").symlink_to("/dev/full")
        return made

    api = build(registry)
    monkeypatch.setattr("dropgen.serving.api._spooled", full)
    answer = call(api, "POST", "/v1/segment", content=nifti(np.zeros((64, 64, 64), np.float32)))
    assert (answer.status_code, answer.json()["error"]) == (507, "the server's disk is full; try later")
    assert not list((registry / "service" / "spool").iterdir())


def test_nothing_of_a_header_gets_into_the_mask(api: FastAPI) -> None:
    image = nib.Nifti1Image(GOOD, np.eye(4))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"Meier"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Meier"))
    body = bytes(image.to_bytes())
    assert body.count(b"Meier") == 5
    answer = call(api, "POST", "/v1/segment", content=body)
    assert answer.status_code == 200, answer.text
    assert b"Meier" not in gzip.decompress(answer.content) + str(answer.headers).encode()


def test_the_page_of_the_interface_shows_every_route_to_anybody_and_loads_nothing(registry: Path) -> None:
    api = build(registry, Tokens.of({"anna": "a" * 20}))
    answer = call(api, "GET", "/docs")
    assert answer.status_code == 200
    for path, methods in api.openapi()["paths"].items():
        for method, route in methods.items():
            assert f"<b>{method.upper()}</b>{path}</h2>" in answer.text
            assert route["description"] in unescape(answer.text)
    assert not re.search(r"src=|href=|url\(|@import|<script", answer.text)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_request_id_is_taken_where_it_is_one_and_answered_back(api: FastAPI) -> None:
    given = call(api, "GET", "/healthz", headers={"X-Request-Id": "scan-0001"})
    assert given.headers["X-Request-Id"] == "scan-0001"
    for wrong in ("x", "a b c d e f g h", "Meier^Anna", "a" * 65):
        made = call(api, "GET", "/nowhere", headers={"X-Request-Id": wrong}).headers["X-Request-Id"]
        assert made != wrong
        assert len(made) == 32


@pytest.mark.parametrize(
    "wanted", ["../blobs", "models:/blobs@champion", "s3://bucket/x", "blobs@../x", "blobs/1/2", "/etc"]
)
def test_a_model_is_a_name_and_never_an_address(api: FastAPI, wanted: str) -> None:
    answer = call(api, "POST", "/v1/segment", params={"model": wanted}, content=nifti(GOOD))
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_models_are_listed_with_their_cards(api: FastAPI) -> None:
    listed = call(api, "GET", "/v1/models").json()["models"]
    assert listed["blobs"] == {"aliases": {"champion": "1"}, "versions": ["1"]}
    shown = call(api, "GET", "/v1/models/blobs").json()
    assert shown["card"]["use"] == "research use only"
    assert shown["card"]["data"]["classes"] == ["background", "left", "right"]
    assert call(api, "GET", "/v1/models/nobody").status_code == 404


def test_a_full_queue_says_when_to_come_back(registry: Path, oblique_volume: Callable[[int], Volume]) -> None:
    api = build(registry, queue=1)
    body = nifti(oblique_volume(7).array)

    async def three() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url=HERE) as client:
            return list(await asyncio.gather(*(client.post("/v1/segment", content=body) for _ in range(3))))

    answers = asyncio.run(three())
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
    busy = next(answer for answer in answers if answer.status_code == 429)
    assert int(busy.headers["Retry-After"]) >= 1
    assert "waiting" in busy.json()["error"]


def test_a_mask_that_takes_too_long_is_a_504_with_a_sentence(
    registry: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    answer = call(build(registry, answer_seconds=0.01), "POST", "/v1/segment", content=nifti(oblique_volume(8).array))
    assert answer.status_code == 504
    assert "/v1/jobs" in answer.json()["error"]


def test_a_body_that_trickles_is_a_408_with_a_sentence_that_leaves_nothing(registry: Path) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield nifti(GOOD)[:100]
        await asyncio.sleep(60)

    api, spool = build(registry, caps=Caps(seconds=0.05)), registry / "service" / "spool"
    others = set(spool.iterdir())  # of requests that took too long and are still worked on
    answer = call(api, "POST", "/v1/segment", content=trickle())
    assert answer.status_code == 408, answer.text
    assert "did not arrive within 0.05 s" in answer.json()["error"]
    assert set(spool.iterdir()) <= others


@pytest.mark.parametrize(
    ("path", "request_", "names"),
    [
        ("/v1/segment", {"params": {"modality": "x" * 65}}, "modality: "),
        ("/v1/jobs", {"params": {"source": "x" * 1025}}, "source: "),
        ("/v1/jobs", {"headers": {"Idempotency-Key": "a/b"}}, "idempotency-key: "),
    ],
)
def test_a_parameter_of_the_wrong_form_is_a_422_that_names_it(
    api: FastAPI, path: str, request_: dict[str, object], names: str
) -> None:
    answer = call(api, "POST", path, content=nifti(GOOD), **request_)
    assert answer.status_code == 422
    assert answer.json()["error"].lower().startswith(names)


def test_what_took_too_long_keeps_its_place_until_it_ends_and_leaves_nothing(
    registry: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    api, spool = build(registry, answer_seconds=0.01, queue=1), registry / "service" / "spool"
    body = nifti(oblique_volume(8).array)
    statuses = [call(api, "POST", "/v1/segment", content=body).status_code for _ in range(2)]
    assert statuses == [504, 429]
    deadline = time.monotonic() + 60
    while list(spool.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(spool.iterdir())
    while call(api, "POST", "/v1/segment", content=b"").status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert call(api, "POST", "/v1/segment", content=b"").status_code == 400


def test_metrics_count_and_no_log_holds_what_a_client_named(registry: Path) -> None:
    api = build(registry)
    planted = np.ones((6, 5, 4), np.float32)
    image = nib.Nifti1Image(planted, np.eye(4))
    image.header["descrip"] = b"Meier^Anna"
    call(api, "POST", "/v1/segment", content=bytes(image.to_bytes()), params={"modality": "Meier"})
    call(api, "GET", "/v1/jobs/Meier_Anna.nii.gz")
    call(api, "GET", "/Meier_Anna.nii.gz")
    page = call(api, "GET", "/metrics").text
    assert 'dropgen_requests_total{code="404",route="/v1/jobs/{id}"} 1.0' in page
    for name in (
        "dropgen_request_seconds_bucket",
        "dropgen_queue_length",
        "dropgen_loaded_models",
        "dropgen_replica_rss",
    ):
        assert name in page
    logs = "".join((registry / "service" / name).read_text() for name in ("requests.jsonl", "audit.jsonl"))
    assert "Meier" not in logs + page
    assert all(json.loads(line)["request"] for line in logs.splitlines())
