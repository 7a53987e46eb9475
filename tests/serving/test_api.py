from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.api import Model, create_api


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return bytes(nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes())


def call(api: FastAPI, method: str, path: str, **request: object) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


@pytest.fixture(scope="module")
def api(segmenter: Segmenter, model: Model) -> FastAPI:
    return create_api(segmenter, model, max_memory=2**27)


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
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-5)  # NIfTI stores float32
    assert answer.headers["X-Dropgen-Model"] == f"models:/blobs@champion; digest={model.digest}"


def test_health_names_the_model(api: FastAPI, model: Model) -> None:
    answer = call(api, "GET", "/healthz")
    assert answer.json()["status"] == "ok"
    assert answer.json()["model"]["digest"] == model.digest
    assert answer.json()["model"]["classes"] == ["background", "left", "right"]


GOOD = np.ones((6, 5, 4), np.float32)
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


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_flipped_header_byte_gives_a_mask_or_a_refusal(api: FastAPI, data: st.DataObject) -> None:
    body = bytearray(nifti(GOOD))
    body[data.draw(st.integers(0, 351))] ^= data.draw(st.integers(1, 255))
    answer = call(api, "POST", "/v1/segment", content=bytes(body))
    assert answer.status_code in (200, 400, 413), answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["length stated", "length unstated"])
def test_body_over_the_cap_is_refused_as_it_arrives(segmenter: Segmenter, model: Model, stream: bool) -> None:
    sent = 0

    async def endless():  # type: ignore[no-untyped-def]
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    api = create_api(segmenter, model, max_memory=2**27, max_bytes=10_000)
    answer = call(api, "POST", "/v1/segment", content=endless() if stream else bytes(20_000))
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]
    assert sent <= 12_000


def test_gzip_bomb_is_refused_before_it_unfolds(segmenter: Segmenter, model: Model) -> None:
    bomb = gzip.compress(bytes(5_000_000))
    api = create_api(segmenter, model, max_memory=2**27, max_bytes=1_000_000)
    assert len(bomb) < 10_000
    assert call(api, "POST", "/v1/segment", content=bomb).status_code == 413


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
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:

            async def noted(name: str, request: object) -> httpx.Response:
                answer = await request  # type: ignore[misc]
                ended.append(name)
                return answer  # type: ignore[no-any-return]

            masks = [asyncio.create_task(noted("mask", client.post("/v1/segment", content=body))) for _ in range(2)]
            await asyncio.sleep(0.01)
            await noted("health", client.get("/healthz"))
            return ended, [(await mask).content for mask in masks]

    ended, masks = asyncio.run(both())
    assert ended[0] == "health"
    assert masks[0] == masks[1]
