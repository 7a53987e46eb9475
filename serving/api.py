"""The HTTP face: NIfTI bytes in, a NIfTI mask on the same grid out, at once or as a job.

It knows nothing of Ray, so that it can be called as any other ASGI application.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from dropgen import __version__
from dropgen.errors import DropGenError, RegistryError, TooLargeError, VolumeError
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.tracking import registered_models
from dropgen.serving.answers import DICOM_TYPE, MASK_TYPE, PICTURE_TYPE, answers, headers, refusal, where
from dropgen.serving.engine import Engine, Made, Order
from dropgen.serving.headers import REQUEST_HEADER, RETRY_HEADER
from dropgen.serving.jobs import VOLUME, Jobs, UnknownJobError
from dropgen.serving.journal import AUDIT_FILE, Journal
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models, Served
from dropgen.serving.page import add_page
from dropgen.serving.places import BusyError, Queue
from dropgen.serving.reference import reference_page
from dropgen.serving.telemetry import Metrics, Watch
from dropgen.serving.tokens import Tokens
from dropgen.serving.upload import Caps, Received, SlowError, receive, receive_file
from dropgen.serving.watchdog import Watchdog

ZIP_TYPE = "application/zip"
NO_LOADS = "default-src 'none'; style-src 'unsafe-inline'"
MAX_DIGITS = 30  # of a Content-Length
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REPLACED_SECONDS = 30  # until another replica is there
KEY = re.compile(r"[A-Za-z0-9._-]{8,64}")
SAME = ("input_sha256", "model", "modality", "dicom", "uncertainty")  # what two requests for one job agree in


class ConflictError(DropGenError):
    """The job is not in the state that was asked for."""


STATUS: dict[type[DropGenError], int] = {
    TooLargeError: 413, VolumeError: 400, RegistryError: 404, UnknownJobError: 404, BusyError: 429,
    ConflictError: 409, SlowError: 504, DropGenError: 500,
}  # fmt: skip


def create_api(root: Path, models: Models, tokens: Tokens, limits: Limits) -> tuple[FastAPI, Engine, Jobs]:
    """Builds the application; returns what works on its jobs too.

    Args:
        root: Output root: registry, and the folder `service` of jobs, logs and bodies that are being received.
        models: Predict every mask.
        tokens: Who may ask.
        limits: What is taken on.
    """
    service = root / "service"
    spool = service / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    metrics, jobs = Metrics(), Jobs(service / "jobs", limits.keep_seconds)
    queue, log = Queue(limits.queue), Journal(service / "requests.jsonl")

    def retire(taken: int, bound: float) -> None:
        metrics.worn.inc()
        log.add(event="replica keeps too much memory and is replaced", rss_bytes=taken, bound_bytes=round(bound))

    def refresh(bound: float) -> None:
        state = models.state()
        metrics.refresh(queue.length, len(state["loaded"]), state["bytes"], bound)

    watchdog = Watchdog(lambda: models.state()["bytes"], lambda: queue.length, limits.margin, retire, refresh)
    engine = Engine(models, Journal(service / AUDIT_FILE, durable=True), limits.max_memory, watchdog)

    def require_staying() -> None:
        if watchdog.worn:
            raise BusyError("this replica keeps too much memory and is being replaced; try later", REPLACED_SECONDS)

    # FastAPI's own documentation pages load scripts from a CDN.
    api = FastAPI(title="DropGen", version=__version__, docs_url=None, redoc_url=None)
    api.add_middleware(Watch, routes=lambda: api.routes, tokens=tokens, metrics=metrics, log=log)
    binary = {"requestBody": {"required": True, "content": {"application/octet-stream": {}, ZIP_TYPE: {}}}}
    optional = {"requestBody": {"required": False, "content": {"application/octet-stream": {}, ZIP_TYPE: {}}}}

    @api.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Says that the default model can answer, and which it is."""
        served = await run_in_threadpool(models.find)
        return {"status": "ok", "model": asdict(served.model), "version": served.registered.version}

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(reference_page(api.openapi()), headers={"Content-Security-Policy": NO_LOADS})

    add_page(api)

    @api.get("/metrics", response_class=Response, responses=answers(401, 403))
    async def prometheus() -> Response:
        """Metrics for Prometheus, over all replicas."""

        def page() -> bytes:
            refresh(watchdog.bound)
            return metrics.text(jobs.waiting())

        # In a thread: while a model is loaded, what is loaded is not told.
        return Response(await run_in_threadpool(page), media_type="text/plain; version=0.0.4")

    @api.get("/v1/models", responses=answers(401, 403))
    async def list_models() -> dict[str, Any]:
        """Every registered model with its versions and aliases."""
        registered = await run_in_threadpool(registered_models, root)
        return {"models": registered, "memory": await run_in_threadpool(models.state)}

    @api.get("/v1/models/{name:path}", responses=answers(400, 401, 403, 404, 422))
    async def show_model(name: str) -> dict[str, Any]:
        """The model card of the champion, of `name@alias` or of `name/version`, and the modalities it asks for."""
        served = await run_in_threadpool(models.find, name)
        told = {"version": served.registered.version, "modalities": served.modalities, "card": served.registered.card}
        return {**asdict(served.model), "values": served.model.labelling.names, **told}

    @api.post(
        "/v1/segment",
        response_class=Response,
        responses=answers(400, 401, 403, 404, 408, 413, 422, 429, 500, 504, 507, masks=(MASK_TYPE, DICOM_TYPE)),
        openapi_extra=binary,
    )
    async def segment(
        request: Request,
        model: str | None = None,
        modality: Annotated[str | None, Query(max_length=64)] = None,
        uncertainty: bool = False,
    ) -> Response:
        """Segments the .nii or .nii.gz volume in the body, or the zip of one DICOM series, sent as application/zip.

        With Accept: application/dicom the mask of a series is a DICOM-SEG. With uncertainty=true headers say how sure
        the model is; its maps are given with jobs.
        """
        require_staying()
        served, dicom = await run_in_threadpool(models.find, model), _wants_dicom(request, _is_zip(request))
        served.require_one_channel()
        if modality is not None or not _is_zip(request):
            served.require_modality(modality)
        with queue.place() as place:
            folder = _spooled(spool)
            try:
                received = await _receive(request, folder, limits.caps)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            again = RETRY_HEADER in request.headers
            order = Order(
                request.state.who, request.state.request, modality, received.sha256, None, dicom, again, uncertainty
            )
            made = await queue.run(place, _segment, engine, folder, served, order, limits.caps, limits.answer_seconds)
        return Response(
            made.mask,
            media_type=DICOM_TYPE if dicom else MASK_TYPE,
            headers=headers(served.model.uri, served.model.digest, served.registered.version, asdict(made.findings)),
        )

    @api.post(
        "/v1/jobs",
        status_code=202,
        responses=answers(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 507),
        openapi_extra=optional,
    )
    async def submit(
        request: Request,
        model: str | None = None,
        modality: Annotated[str | None, Query(max_length=64)] = None,
        source: Annotated[str | None, Query(max_length=1024)] = None,
        uncertainty: bool = False,
        idempotency_key: Annotated[str | None, Header(pattern=f"^{KEY.pattern}$")] = None,
    ) -> dict[str, Any]:
        """Accepts the volume in the body, or the file `source` below a folder that the server was told to allow.

        With Accept: application/dicom the job's mask of a series, sent or named as a zip, is a DICOM-SEG. With
        uncertainty=true the job also says how sure the model is, in its findings and as maps.
        """
        zipped = _is_zip(request) or (source or "").lower().endswith(".zip")
        served, dicom = await run_in_threadpool(models.find, model), _wants_dicom(request, zipped)
        served.require_one_channel()
        if modality is not None or not zipped:
            served.require_modality(modality)
        if await run_in_threadpool(jobs.waiting) >= limits.jobs:
            raise BusyError(f"{limits.jobs} jobs are waiting, as many as this service keeps; try later", 60)
        with jobs.draft() as draft:
            if source is None:
                received = await _receive(request, draft, limits.job_caps)
            else:
                path = _allowed(source, limits.sources)
                received = await run_in_threadpool(receive_file, path, draft / VOLUME, limits.job_caps)
            registered = served.registered
            fields = {
                "model": registered.name, "version": registered.version, "digest": served.model.digest,
                "model_version": f"{registered.name}/{registered.version}", "modality": modality,
                "request": request.state.request, "input_sha256": received.sha256, "dicom": dicom,
                "uncertainty": uncertainty, "use": RESEARCH_ONLY,
            }  # fmt: skip
            record = jobs.accept(draft, request.state.who, idempotency_key, fields)
        if any(record.get(name) != fields[name] for name in SAME):
            raise ConflictError(
                "this Idempotency-Key belongs to a job of another volume, model, modality, format or uncertainty"
            )
        return _shown(record)

    @api.get("/v1/jobs/{id}", responses=answers(401, 403, 404, 422))
    async def status(request: Request, id: str) -> dict[str, Any]:
        """The state of a job: accepted, running, done, failed or cancelled."""
        return _shown(jobs.read(id, request.state.who))

    @api.get(
        "/v1/jobs/{id}/result",
        response_class=Response,
        responses=answers(401, 403, 404, 409, 422, masks=(MASK_TYPE, DICOM_TYPE)),
    )
    async def result(request: Request, id: str) -> Response:
        """The mask of a job that is done, as the job asked for it."""
        record = _done(jobs, id, request)
        mask = await run_in_threadpool(jobs.mask, id, request.state.who)
        return Response(
            mask,
            media_type=DICOM_TYPE if record.get("dicom") else MASK_TYPE,
            headers=headers(
                f"models:/{record['model_version']}", record["digest"], record["version"], record["findings"]
            ),
        )

    @api.get(
        "/v1/jobs/{id}/{part}",
        response_class=Response,
        responses=answers(401, 403, 404, 409, 422, masks=(PICTURE_TYPE, MASK_TYPE)),
    )
    async def beside(request: Request, id: str, part: Literal["preview", "entropy", "disagreement"]) -> Response:
        """What a job that is done has beside its mask: a picture (PNG), and maps where uncertainty was asked for."""
        _done(jobs, id, request)
        found = await run_in_threadpool(jobs.beside, id, request.state.who, part)
        if found is None:
            raise ConflictError(
                f"the job has no {part}: maps are made of jobs that are sent with ?uncertainty=true, disagreement by "
                "methods that are trained on image and features"
            )
        return Response(found, media_type=PICTURE_TYPE if part == "preview" else MASK_TYPE)

    @api.delete("/v1/jobs/{id}", responses=answers(401, 403, 404, 422))
    async def cancel(request: Request, id: str) -> dict[str, Any]:
        """Cancels a job; one that a replica is at ends at its next window."""
        return _shown(await run_in_threadpool(jobs.cancel, id, request.state.who))

    @api.exception_handler(DropGenError)
    async def refuse(request: Request, error: DropGenError) -> JSONResponse:
        status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
        answer = refusal(status, str(error))
        if isinstance(error, BusyError):
            answer.headers["Retry-After"] = str(error.seconds)
        return answer

    @api.exception_handler(HTTPException)
    async def misroute(request: Request, error: HTTPException) -> JSONResponse:
        answer = refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        answer.headers.update(error.headers or {})
        return answer

    @api.exception_handler(RequestValidationError)
    async def misuse(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = (f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return refusal(422, "; ".join(problems))

    @api.exception_handler(OSError)
    async def lack(request: Request, error: OSError) -> JSONResponse:
        return (
            refusal(507, "the server's disk is full; try later") if error.errno in FULL else await fail(request, error)
        )

    @api.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        log.add(request=request.state.request, error=type(error).__name__, where=where(error))
        answer = refusal(500, f"the server failed with {type(error).__name__}; its log says where")
        answer.headers[REQUEST_HEADER] = request.state.request  # this answer does not pass by the middleware
        return answer

    return api, engine, jobs


def _segment(engine: Engine, folder: Path, served: Served, order: Order, caps: Caps, seconds: float) -> Made:
    try:
        made = engine.segment(folder, served, order, caps, wait=seconds)
        engine.record(made.mask, served, order, made.uid)
        return made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_zip(request: Request) -> bool:
    """Whether the body may tell its modality itself, so that the request need not."""
    return request.headers.get("content-type", "").partition(";")[0].strip() == ZIP_TYPE


def _wants_dicom(request: Request, zipped: bool) -> bool:
    """Whether the mask is to be DICOM-SEG: said by name, for everything else is also met by NIfTI.

    Raises:
        VolumeError: It is, of what is no zip.
    """
    accepted = request.headers.get("accept", "").split(",")
    wanted = DICOM_TYPE in (one.partition(";")[0].strip().lower() for one in accepted)
    if wanted and not zipped:
        raise VolumeError(f"{DICOM_TYPE} is given for a DICOM series; send its zip as Content-Type: {ZIP_TYPE}")
    return wanted


def _spooled(spool: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=spool))


async def _receive(request: Request, folder: Path, caps: Caps) -> Received:
    length = request.headers.get("content-length", "")
    # Python refuses to read thousands of digits, and nobody has so many bytes.
    stated = int(length[:MAX_DIGITS]) if length.isascii() and length.isdecimal() else None
    try:
        return await receive(request.stream(), stated, folder / VOLUME, caps)
    except SlowError as error:
        raise HTTPException(408, str(error)) from None


def _done(jobs: Jobs, id: str, request: Request) -> dict[str, Any]:
    """The record of a job that is done, its owner's alone.

    Raises:
        UnknownJobError: There is no such job.
        ConflictError: It is not done.
    """
    record = jobs.read(id, request.state.who)
    if record["state"] != "done":
        cause = record.get("error", "ask again later, or send the volume again")
        raise ConflictError(f"the job is {record['state']} and has no mask: {cause}")
    return record


def _allowed(source: str, folders: tuple[Path, ...]) -> Path:
    """A file below an allowed folder; links are followed before it is judged, and what exists elsewhere is not told."""
    if "\0" not in source and not Path(source).is_absolute():
        for folder in folders:
            path = (folder / source).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
    raise VolumeError("?source= names no file below a folder that the server allows; see dropgen serve --allow")


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A job as its owner sees it."""
    return {key: value for key, value in record.items() if key not in ("who", "model_version", "attempts")}
