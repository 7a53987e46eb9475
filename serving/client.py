"""Speaks to a running segmentation service."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import secrets
import threading
import time
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dropgen.errors import ServiceError, VolumeError
from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.serving.headers import FLAGS_HEADER, REQUEST_HEADER, RETRY_HEADER
from dropgen.serving.models import Model

CONNECT_SECONDS = 10
ANSWER_SECONDS = 3600  # one large volume on a CPU takes minutes, and others may wait before it
PATIENCE_SECONDS = 120  # with a service whose replica died: another is started, and the same volume gives the same mask
DEATHS = 3  # a volume that took three replicas with it is not given a fourth
RETRY_SECONDS = 30  # between tries, where the service does not say
CANCEL_SECONDS = 3  # for a job that nobody waits for any more: the run is ending
POLL_SECONDS = 10  # between looks for a job, at most
JOB_BYTES = 32 * 2**20  # from here on a volume is sent as a job, as the page does; on a CPU it takes minutes
VOLUME_TYPE, ZIP_TYPE = "application/octet-stream", "application/zip"
UNREADY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
# Serve's proxy forgets the routes of an application that stops before its last answers are given.
GONE = (*UNREADY, httpx.codes.NOT_FOUND)


@dataclass(frozen=True)
class Answer:
    """A mask as the service gave it.

    Attributes:
        name: What error messages call the volume.
        mask: .nii.gz.
        flags: What a person should look at, one phrase each.
        request: Id of the request, the same at every try.
        tries: How often it was sent.
    """

    name: str
    mask: bytes
    flags: tuple[str, ...]
    request: str
    tries: int

    @property
    def volume(self) -> Volume:
        """The mask, uint8, on the grid of what was sent.

        Raises:
            VolumeError: It did not arrive whole.
        """
        mask = volume_from_bytes(self.mask, f"the mask of {self.name}")
        return Volume(mask.array.astype("uint8"), mask.affine)


class Client:
    """One service at one address, for several threads.

    Args:
        url: For example `http://127.0.0.1:8000`.
        token: Sent with every request.
        patience: Seconds for which a service that does not answer is asked again.
        stop: Once set, nobody waits for another try, and jobs that were waited for are cancelled.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        patience: float = PATIENCE_SECONDS,
        stop: threading.Event | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Proxy settings of the environment are left out: a proxy does not know this machine's loopback.
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.Client(timeout=timeout, trust_env=False, headers=headers)
        self._patience = patience
        self._stop = threading.Event() if stop is None else stop

    def model(self) -> Model:
        """The model that the service answers with.

        Raises:
            ServiceError: It cannot be reached or is no segmentation service.
        """
        answer = self._ready("GET", "/healthz")
        try:
            model = answer.json()["model"]
            regions = tuple(map(tuple, model["regions"]))
            told = {
                "classes": tuple(model["classes"]),
                "regions": regions,
                "channels": tuple(model.get("channels", ())),
            }
            return Model(**{**model, **told})
        except (ValueError, KeyError, TypeError):
            raise ServiceError(
                f"{self.url} answers {answer.status_code} but is no ready segmentation service; start `dropgen serve`"
            ) from None

    def segment(self, path: Path, modality: str | None = None, model: str | None = None) -> Answer:
        """Has one file segmented; arguments and errors as for `ask`."""
        return self.ask(_bytes(path), VOLUME_TYPE, str(path), modality, model)

    def segment_series(self, slices: Sequence[Path], modality: str | None = None, model: str | None = None) -> Answer:
        """Has the slices of one DICOM series segmented; other arguments as for `ask`.

        Returns:
            A mask on the grid that `features.studies.dicom.read_series` gives the slices.

        Raises:
            VolumeError: As `ask`.
            ServiceError: As `ask`.
        """
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for index, path in enumerate(slices):
                archive.writestr(str(index), _bytes(path))  # a file name can hold a patient's
        return self.ask(packed.getvalue(), ZIP_TYPE, "the series", modality, model)

    def ask(
        self, content: bytes, media: str, name: str, modality: str | None = None, model: str | None = None
    ) -> Answer:
        """Has a volume segmented: at once, or where it is large as a job.

        Args:
            content: NIfTI, or a zip of one DICOM series.
            media: Which of them.
            name: What error messages call it.
            modality: Where the model needs one.
            model: As `Model.pinned` has it; whatever the service answers with where None.

        Raises:
            VolumeError: The service refused it.
            ServiceError: The service cannot be reached, stays busy or does not know the token.
        """
        identity = secrets.token_hex(16)
        query = {key: value for key, value in (("modality", modality), ("model", model)) if value is not None}
        headers = {"Content-Type": media, REQUEST_HEADER: identity}
        if len(content) < JOB_BYTES:
            answer, tries = self._persist("POST", "/v1/segment", params=query, content=content, headers=headers)
        else:
            headers["Idempotency-Key"] = identity  # sent again, it is the same job
            answer, tries = self._persist("POST", "/v1/jobs", params=query, content=content, headers=headers)
            if answer.status_code == httpx.codes.ACCEPTED:
                answer = self._finished(str(answer.json()["id"]), name)
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.TOO_MANY_REQUESTS):
            raise ServiceError(f"{self.url}: {_sentence(answer)}")
        if answer.status_code != httpx.codes.OK:
            raise VolumeError(f"{name}: {_sentence(answer)}")
        return Answer(name, answer.content, _flags(answer), identity, tries)

    def _finished(self, job: str, name: str) -> httpx.Response:
        """The mask of a job, or the refusal; a job that nobody waits for any more is cancelled."""
        try:
            return self._result(job, name)
        except BaseException:
            if self._stop.is_set():
                self._cancel(job)
            raise

    def _cancel(self, job: str) -> None:
        with contextlib.suppress(httpx.HTTPError):  # a service that is away has nothing to be spared
            self._http.delete(f"{self.url}/v1/jobs/{job}", timeout=CANCEL_SECONDS)

    def _result(self, job: str, name: str) -> httpx.Response:
        """Waits for a job, looking more and more seldom."""
        for attempt in itertools.count():
            answer, _ = self._persist("GET", f"/v1/jobs/{job}")
            if answer.status_code != httpx.codes.OK:
                return answer
            state = answer.json()
            if state["state"] == "done":
                return self._persist("GET", f"/v1/jobs/{job}/result")[0]
            if state["state"] in ("failed", "cancelled"):
                raise VolumeError(f"{name}: {state.get('error', 'the job was cancelled')}")
            self._pause(min(POLL_SECONDS, 0.25 * 2 ** min(attempt, 6)))
        raise AssertionError("it looks until the job has ended")

    def _persist(self, method: str, path: str, **request: Any) -> tuple[httpx.Response, int]:
        """Sends until the service answers: a full queue is waited for, what a replica took with it is sent again.

        Returns:
            The answer, and how often it took.
        """
        headers, first, deaths = request.pop("headers", {}), dict[str, float](), 0
        for tries in itertools.count(1):
            again = {} if tries == 1 else {RETRY_HEADER: "1"}
            answer = self._send(method, path, headers=headers | again, **request)
            busy = answer.status_code == httpx.codes.TOO_MANY_REQUESTS
            gone = _by_proxy(answer, GONE)
            if not (busy or _died(answer) or gone):
                break
            deaths += _died(answer)
            now, kind = time.monotonic(), "busy" if busy else "lost"
            if now - first.setdefault(kind, now) >= (ANSWER_SECONDS if busy else self._patience):
                if gone:
                    raise _not_ready(self.url, answer)
                if busy or deaths >= DEATHS:
                    break
            self._pause(_wait(answer, tries))
        return answer, tries

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise ServiceError(f"{self.url} is not waited for any more")

    def _ready(self, method: str, path: str) -> httpx.Response:
        answer = self._send(method, path)
        if _by_proxy(answer, UNREADY):
            raise _not_ready(self.url, answer)
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, self.url + path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            cause = str(error) or type(error).__name__
            raise ServiceError(f"{self.url} cannot be reached ({cause}); start it with `dropgen serve`") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}") from None


def _died(answer: httpx.Response) -> bool:
    """Whether Serve's proxy says that a replica failed to answer."""
    return _by_proxy(answer, (httpx.codes.INTERNAL_SERVER_ERROR,))


def _by_proxy(answer: httpx.Response, codes: Collection[int]) -> bool:
    """Whether it is a proxy that says one of these: a replica's refusals are JSON with a sentence."""
    return answer.status_code in codes and not answer.headers.get("Content-Type", "").startswith("application/json")


def _not_ready(url: str, answer: httpx.Response) -> ServiceError:
    return ServiceError(f"{url} answers {answer.status_code}, it is starting, stopping or busy; try later")


def _wait(answer: httpx.Response, tries: int) -> float:
    """Seconds until the next try: as the service says, else longer every time, and never at the same time for all."""
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):  # none, or a date
        return secrets.SystemRandom().uniform(0.5, 1.0) * min(float(RETRY_SECONDS), 0.5 * 2.0**tries)


def _flags(answer: httpx.Response) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads(answer.headers[FLAGS_HEADER])))
    except (KeyError, ValueError, TypeError):
        raise ServiceError(
            f"{answer.url.copy_with(query=None)} answers without {FLAGS_HEADER}; it is no service of this version"
        ) from None


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {answer.status_code}"
