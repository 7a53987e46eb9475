"""Requests to the service's interface in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
from fastapi import FastAPI

from dropgen.serving.api import create_api
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.tokens import Tokens

HERE = "http://127.0.0.1:8000"
GOOD = np.ones((6, 5, 4), np.float32)


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return bytes(nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes())


def call(api: FastAPI, method: str, path: str, **request: object) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def build(root: Path, tokens: Tokens | None = None, models: Models | None = None, **limits: object) -> FastAPI:
    models = models or Models(root, "blobs@champion", 2**30)
    settled = Limits(**{"max_memory": 2**27} | limits)  # type: ignore[arg-type]
    return create_api(root, models, tokens or Tokens({}), settled)[0]
