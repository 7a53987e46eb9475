"""The HTTP face of one Segmenter: NIfTI bytes in, a NIfTI mask on the same grid out.

It knows nothing of Ray, so that it can be called as any other ASGI application.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dropgen import __version__
from dropgen.errors import DropGenError, VolumeError
from dropgen.features.studies.volume import GZIP_MAGIC, mask_to_bytes, volume_from_bytes
from dropgen.manifest import digest
from dropgen.platform.evaluation.memory import gib
from dropgen.platform.segmenter import Segmenter, read_record
from dropgen.serving.room import TooLargeError, require_room

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 2**20  # as sent and unpacked; a CT of 512 x 512 x 1000 voxels at 2 bytes is 500 MiB
MODEL_HEADER = "X-Dropgen-Model"
STATUS: dict[type[DropGenError], int] = {TooLargeError: 413, VolumeError: 400, DropGenError: 500}


@dataclass(frozen=True)
class Model:
    """Which model stands behind an answer.

    Attributes:
        uri: Where it was asked for: `models:/name@alias`, or a bundle's folder.
        digest: Hash over specification and weights; equal digests mean equal masks.
        classes: Class names; the index is the label value.
    """

    uri: str
    digest: str
    classes: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Path, uri: str) -> Model:
        """Describes a bundle."""
        record = read_record(bundle)
        return cls(uri, digest(record), tuple(record["spec"]["classes"]))


def create_api(segmenter: Segmenter, model: Model, max_memory: int, max_bytes: int = MAX_BYTES) -> FastAPI:
    """Builds the application around a loaded model.

    Args:
        segmenter: Predicts every mask.
        model: Named in `/healthz` and in the header `X-Dropgen-Model` of every mask.
        max_memory: Bytes that one prediction may take; a volume that would need more is refused.
        max_bytes: Larger bodies are refused, compressed or unpacked.
    """
    # The documentation pages of FastAPI load scripts from a CDN; /openapi.json needs no network.
    api = FastAPI(title="DropGen", version=__version__, docs_url=None, redoc_url=None)
    turn = asyncio.Lock()  # one volume at a time: two would need twice the memory and gain no time on the same cores

    @api.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Says that the model is loaded, and which."""
        return {"status": "ok", "model": asdict(model)}

    @api.post(
        "/v1/segment",
        response_class=Response,
        responses={200: {"content": {"application/gzip": {}}, "description": "Mask, .nii.gz, on the image's grid"}},
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    )
    async def segment(request: Request, modality: str | None = None) -> Response:
        """Segments the .nii or .nii.gz volume in the body."""
        body = await _receive(request, max_bytes)
        async with turn:
            mask = await run_in_threadpool(_segment, segmenter, body, modality, max_bytes, max_memory)
        header = {MODEL_HEADER: f"{model.uri}; digest={model.digest}"}
        return Response(mask, media_type="application/gzip", headers=header)

    @api.exception_handler(DropGenError)
    async def refuse(request: Request, error: DropGenError) -> JSONResponse:
        return _error(next(status for kind, status in STATUS.items() if isinstance(error, kind)), str(error))

    @api.exception_handler(HTTPException)
    async def misroute(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    @api.exception_handler(RequestValidationError)
    async def misuse(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = (f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return _error(422, "; ".join(problems))

    @api.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return _error(500, f"the server failed with {type(error).__name__}; its log says where")

    return api


def _segment(segmenter: Segmenter, body: bytes, modality: str | None, max_bytes: int, max_memory: int) -> bytes:
    try:
        volume = volume_from_bytes(_unpack(body, max_bytes), "the uploaded volume")
        log.info("planned %s of %s GiB", require_room(segmenter, volume, max_memory), gib(max_memory))
        return mask_to_bytes(segmenter.predict(volume, modality), volume.affine)
    except MemoryError:
        raise TooLargeError("the volume needs more memory than the server has; crop or resample it") from None


async def _receive(request: Request, max_bytes: int) -> bytes:
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    if not body:
        raise VolumeError("the request has no body; send the bytes of a .nii or .nii.gz file")
    return bytes(body)


def _unpack(body: bytes, max_bytes: int) -> bytes:
    # Unpacked here, up to the cap, and not by the reader: a gzip stream grows a thousandfold.
    if not body.startswith(GZIP_MAGIC):
        return body
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(body)).read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"the uploaded volume is damaged or truncated ({error}); send it again") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> TooLargeError:
    limit = f"{max_bytes / 2**20:g} MiB"
    return TooLargeError(f"the volume is larger than {limit}, the most this server takes; crop or resample it")


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
