"""Speaks to a running segmentation service."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from dropgen.errors import ServiceError, VolumeError
from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.serving.models import Model

CONNECT_SECONDS = 10
ANSWER_SECONDS = 3600  # one large volume on a CPU takes minutes, and others may wait before it
TRIES = 20  # of a busy service, or of one whose replica died: the same volume gives the same mask
RETRY_SECONDS = 30  # between them, at most
VOLUME_TYPE, ZIP_TYPE = "application/octet-stream", "application/zip"
UNREADY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


class Client:
    """One service at one address.

    Args:
        url: For example `http://127.0.0.1:8000`.
        token: Sent with every request.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Proxy settings of the environment are left out: a proxy does not know this machine's loopback.
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.Client(timeout=timeout, trust_env=False, headers=headers)

    def model(self) -> Model:
        """The model that the service answers with.

        Raises:
            ServiceError: It cannot be reached or is no segmentation service.
        """
        answer = self._send("GET", "/healthz")
        try:
            model = answer.json()["model"]
            regions = tuple(map(tuple, model["regions"]))
            return Model(**{**model, "classes": tuple(model["classes"]), "regions": regions})
        except (ValueError, KeyError, TypeError):
            raise ServiceError(
                f"{self.url} answers {answer.status_code} but is no ready segmentation service; start `dropgen serve`"
            ) from None

    def segment(self, path: Path, modality: str | None = None) -> Volume:
        """Has one file segmented.

        Returns:
            The mask, uint8, on the file's grid.

        Raises:
            VolumeError: The service refused this file.
            ServiceError: The service cannot be reached, stays busy or does not know the token.
        """
        return self._mask(_bytes(path), VOLUME_TYPE, str(path), modality)

    def segment_series(self, slices: Sequence[Path], modality: str | None = None) -> Volume:
        """Has the slices of one DICOM series segmented.

        Returns:
            The mask, uint8, on the grid that `features.studies.dicom.read_series` gives them.

        Raises:
            VolumeError: As `segment`.
            ServiceError: As `segment`.
        """
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for index, path in enumerate(slices):
                archive.writestr(str(index), _bytes(path))  # a file name can hold a patient's
        return self._mask(packed.getvalue(), ZIP_TYPE, "the series", modality)

    def _mask(self, content: bytes, media: str, name: str, modality: str | None) -> Volume:
        query = {} if modality is None else {"modality": modality}
        request: dict[str, Any] = {"params": query, "content": content, "headers": {"Content-Type": media}}
        answer = self._send("POST", "/v1/segment", **request)
        for _ in range(TRIES):
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not _died(answer):
                break
            time.sleep(min(RETRY_SECONDS, float(answer.headers.get("Retry-After", 1))))
            answer = self._send("POST", "/v1/segment", **request)
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.TOO_MANY_REQUESTS):
            raise ServiceError(f"{self.url}: {_sentence(answer)}")
        if answer.status_code != httpx.codes.OK:
            raise VolumeError(f"{name}: {_sentence(answer)}")
        mask = volume_from_bytes(answer.content, f"the mask of {name}")
        return Volume(mask.array.astype("uint8"), mask.affine)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, self.url + path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            cause = str(error) or type(error).__name__
            raise ServiceError(f"{self.url} cannot be reached ({cause}); start it with `dropgen serve`") from None
        if answer.status_code in UNREADY and not _from_service(answer):
            raise ServiceError(f"{self.url} answers {answer.status_code}, it is starting, stopping or busy; try later")
        return answer


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}") from None


def _died(answer: httpx.Response) -> bool:
    """Whether Serve's proxy says that a replica failed to answer."""
    return answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR and not _from_service(answer)


def _from_service(answer: httpx.Response) -> bool:
    """Whether a replica speaks, whose refusals are JSON with a sentence, and no proxy before it."""
    return bool(answer.headers.get("Content-Type", "").startswith("application/json"))


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {answer.status_code}"
