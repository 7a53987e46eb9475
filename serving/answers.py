"""What the service answers with: its headers, its media types, and one sentence where it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse

from dropgen.platform.card import RESEARCH_ONLY
from dropgen.serving.headers import FLAGS_HEADER

MODEL_HEADER = "X-Dropgen-Model"
VERSION_HEADER = "X-Dropgen-Version"
USE_HEADER = "X-Dropgen-Use"
ENTROPY_HEADER, DISAGREEMENT_HEADER = "X-Dropgen-Entropy", "X-Dropgen-Disagreement"
MASK_TYPE = "application/gzip"
DICOM_TYPE = "application/dicom"
PICTURE_TYPE = "image/png"

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
REFUSALS = {
    400: "The volume, the model's name or the modality cannot be used", 401: "No token",
    403: "Without tokens: not from this machine", 404: "No such model or job",
    408: "The body did not arrive in time", 409: "The job has no mask, or the key another",
    413: "Too large", 422: "A parameter is wrong",
    429: "The queue is full", 500: "The server failed", 504: "The mask was not made in time",
    507: "The server's disk is full",
}  # fmt: skip


def answers(*codes: int, masks: Sequence[str] = ()) -> dict[int | str, dict[str, Any]]:
    """What a route can answer beside its own document, for the OpenAPI description."""
    told: dict[int | str, dict[str, Any]] = {
        code: {"description": REFUSALS[code], "content": {"application/json": {"schema": ERROR}}} for code in codes
    }
    if masks:
        told[200] = {"description": "The mask on the image's grid", "content": {media: {} for media in masks}}
    return told


def headers(uri: str, digest: str, version: str, findings: Mapping[str, Any]) -> dict[str, str]:
    """What is told beside a mask.

    Args:
        uri: The model.
        digest: Its weights' and settings'.
        version: In the registry.
        findings: Of the mask, as `Findings`; how sure the model is stands there where it was asked.
    """
    unsure = {ENTROPY_HEADER: findings.get("entropy"), DISAGREEMENT_HEADER: findings.get("disagreement")}
    return {
        MODEL_HEADER: f"{uri}; digest={digest}",
        VERSION_HEADER: version,
        USE_HEADER: RESEARCH_ONLY,
        FLAGS_HEADER: json.dumps(list(findings["flags"])),  # in ASCII, which a class name need not be
        **{name: f"{value:g}" for name, value in unsure.items() if value is not None},
    }


def where(error: Exception) -> str:
    """File and line of the failure; its message is left out, because it can hold what was sent."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "unknown"


def refusal(status: int, sentence: str) -> JSONResponse:
    """One sentence, as the client reads it."""
    return JSONResponse({"error": sentence}, status)
