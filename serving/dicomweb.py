"""A DICOMweb archive: series found by QIDO, fetched by WADO, and DICOM-SEG stored by STOW. It alone knows the client.

An archive is not believed: its UIDs become names of files only once they are legal, and what it sends is counted.
Source of the services: DICOM PS3.18.
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread

from dropgen.errors import ConfigError, DropGenError, ResourceError, ServiceError, TooLargeError, VolumeError
from dropgen.features.studies.dicom import DECODE_ERRORS
from dropgen.features.studies.dicom_tree import LEGAL_UID
from dropgen.serving.series import MAX_MEMBERS

AUTH_VARIABLE = "DROPGEN_DICOMWEB_AUTH"
SERIES_BYTES = 2**33  # as of a job's volume
CONNECT_SECONDS, READ_SECONDS = 10, 300
REFUSED = (401, 403)


@dataclass(frozen=True)
class Remote:
    """A series as the archive describes it.

    Attributes:
        uid: Its SeriesInstanceUID.
        study: Its StudyInstanceUID.
        modality: By the tag; empty where the archive does not say.
        instances: How many it has; None where the archive does not say.
    """

    uid: str
    study: str
    modality: str
    instances: int | None


class Archive:
    """What one search addresses.

    Args:
        search: A QIDO search for series: `https://host/dicom-web/series?PatientID=P-17&Modality=MR`, or one in a study,
            `.../studies/UID/series`.
        auth: `USER:PASSWORD` or `Bearer TOKEN`.

    Raises:
        ConfigError: The address is no such search, or the credentials would travel unencrypted.
    """

    def __init__(self, search: str, auth: str | None = None) -> None:
        parts = urlsplit(search)
        try:
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            host = ""
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError("the search is no address; write https://host/dicom-web/series?PatientID=...")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        if "@" in parts.netloc:
            raise ConfigError(f"{self.url} holds a password, which everybody here can see; use {AUTH_VARIABLE}")
        base, _, last = self.url.rpartition("/")
        if last != "series":
            raise ConfigError(f"{self.url} is no search for series; write https://host/dicom-web/series?PatientID=...")
        self._filters = parse_qs(parts.query, keep_blank_values=True)
        self._study: str | None = None
        if (head := base.rpartition("/")[0]).endswith("/studies"):
            self._study, base = base.rpartition("/")[2], head.removesuffix("/studies")
        if not self._filters and self._study is None:
            raise ConfigError(f"{self.url} would fetch the whole archive; add what to look for, as ?PatientID=...")
        if auth is not None and parts.scheme == "http" and not _is_here(host):
            raise ConfigError(f"{self.url} would get the credentials unencrypted; use https")
        self.base = base
        self._client = _connect(base, auth)

    def find(self) -> list[Remote]:
        """The series that match.

        Raises:
            ServiceError: The archive cannot be reached, refuses, or does not speak DICOMweb.
        """
        found: dict[str, Remote] = {}
        with self._asking():
            while True:  # an archive may answer in parts; one that knows no offset repeats itself
                page = {"offset": [str(len(found))]} | self._filters
                answer = self._client.search_for_series(self._study, additional_params=page)
                new = {one.uid: one for one in map(_remote, answer) if one.uid not in found}
                found |= new
                if not new or {"limit", "offset"} & set(self._filters):
                    return list(found.values())

    def fetch(self, remote: Remote, folder: Path) -> None:
        """Writes a series into `folder`, whole or not at all; one that is there with all its slices is not sent again.

        Raises:
            VolumeError: What came is not the series.
            TooLargeError: It has more slices or bytes than are taken.
            ServiceError: The archive went away.
            ResourceError: It cannot be written.
        """
        if remote.instances is not None and folder.is_dir() and len(list(folder.iterdir())) == remote.instances:
            return
        if (remote.instances or 0) > MAX_MEMBERS:
            raise TooLargeError(f"it has {remote.instances} slices, more than {MAX_MEMBERS}; no such series is taken")
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            came = self._receive(remote, partial)
            if not came or (remote.instances is not None and came != remote.instances):
                raise VolumeError(f"the archive says that it has {remote.instances} slices and sent {came}; try again")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            raise ResourceError(
                f"cannot write {folder} ({error.strerror}); free space or name another folder"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _receive(self, remote: Remote, folder: Path) -> int:
        with self._asking("it cannot be fetched"):
            for came, data in enumerate(self._client.iter_series(remote.study, remote.uid), 1):
                uid = str(data.get("SOPInstanceUID", ""))
                if str(data.get("SeriesInstanceUID", "")) != remote.uid or not LEGAL_UID.fullmatch(uid):
                    raise VolumeError("the archive sent an image of another series, or one without a legal UID")
                if came > MAX_MEMBERS:
                    raise TooLargeError(f"it has more than {MAX_MEMBERS} slices; no such series is taken")
                data.save_as(folder / f"{uid}.dcm")
        return sum(1 for _ in folder.iterdir())

    def store(self, path: Path) -> str | None:
        """Stores a DICOM-SEG in the study that it is of; its SOPInstanceUID, or None where the archive has it already.

        Raises:
            VolumeError: The archive did not take it.
            ServiceError: The archive cannot be reached, or refuses.
        """
        data = dcmread(path)
        study, uid = str(data.StudyInstanceUID), str(data.SOPInstanceUID)
        with self._asking(f"{path.name} was not stored"):
            if self._client.search_for_instances(study, search_filters={"SOPInstanceUID": uid}):
                return None
            told = self._client.store_instances([data], study)
            if failed := told.get("FailedSOPSequence"):
                raise VolumeError(f"{path.name} was not stored (reason {failed[0].get('FailureReason', 'unknown')})")
        return uid

    @contextmanager
    def _asking(self, refusal: str | None = None) -> Iterator[None]:
        """Names the archive in whatever goes wrong; with `refusal`, what concerns one series alone is a VolumeError."""
        from requests import HTTPError, JSONDecodeError, RequestException

        try:
            yield
        except DropGenError:
            raise
        except HTTPError as error:
            status = None if error.response is None else error.response.status_code
            if status in REFUSED:
                raise ServiceError(
                    f"{self.base} answers {status} to these credentials; give others in {AUTH_VARIABLE}"
                ) from None
            if refusal is None:
                raise ServiceError(
                    f"{self.base} answers {status} to the search; check its address, or try later"
                ) from None
            raise VolumeError(f"{refusal}, the archive answers {status}; see its log") from None
        except JSONDecodeError:
            raise ServiceError(f"{self.base} does not answer as DICOMweb; check its address") from None
        except RequestException as error:
            raise ServiceError(f"{self.base} cannot be reached ({type(error).__name__}); check its address") from None
        except DECODE_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:  # our disk, and nothing that was sent
                raise
            if refusal is None:
                raise ServiceError(f"{self.base} does not answer as DICOMweb; check its address") from None
            raise VolumeError(f"{refusal}, what the archive sent is damaged ({type(error).__name__})") from None


def read_auth(file: Path | None) -> str | None:
    """The credentials of the file, else of the environment.

    Raises:
        ConfigError: The file cannot be read, or they have neither form.
    """
    try:
        auth = (os.environ.get(AUTH_VARIABLE) if file is None else file.read_text()) or ""
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the credentials in {file} cannot be read; check the path") from None
    auth = auth.strip()
    if file is None and not auth:
        return None
    if "\n" in auth or not (auth.startswith("Bearer ") or ":" in auth):
        raise ConfigError(f"{file or AUTH_VARIABLE} holds no credentials; write one line USER:PASSWORD or Bearer TOKEN")
    return auth


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _connect(base: str, auth: str | None) -> Any:
    try:
        import requests
        from dicomweb_client.web import DICOMwebClient
    except ImportError:
        raise ConfigError(f"{base} needs the package dicomweb-client: pip install 'dropgen[dicom-net]'") from None
    session = requests.Session()
    session.trust_env = False  # no proxy knows this network, and ~/.netrc is not what was asked for
    session.max_redirects = 0  # nobody else gets the credentials
    session.verify = os.environ.get("SSL_CERT_FILE") or True  # a hospital has its own authority
    session.hooks["response"].append(functools.partial(_capped, SERIES_BYTES))
    if auth is not None:
        plain = auth.startswith("Bearer ")
        value = auth if plain else f"Basic {base64.b64encode(auth.encode()).decode()}"
        session.headers["Authorization"] = value
    client = DICOMwebClient(base, session, timeout=(CONNECT_SECONDS, READ_SECONDS))
    client.set_http_retry_params(retry=False)  # the same command continues
    return client


def _capped(most: int, response: Any, *_: Any, **__: Any) -> None:
    """Ends an answer at the byte that is too much, before it is kept."""
    whole = response.iter_content

    def counted(*how: Any, **named: Any) -> Iterator[bytes]:
        left = most
        for chunk in whole(*how, **named):
            left -= len(chunk)
            if left < 0:
                raise TooLargeError(f"the archive sends more than {most} bytes at once; no such series is taken")
            yield chunk

    response.iter_content = counted


def _remote(found: Mapping[str, Any]) -> Remote:
    def value(tag: str) -> str:
        values = found.get(tag, {}).get("Value") or [""]
        return str(values[0])

    uid, study, count = value("0020000E"), value("0020000D"), value("00201209")
    if not (LEGAL_UID.fullmatch(uid) and LEGAL_UID.fullmatch(study)):
        raise ValueError("a UID that is none")
    return Remote(uid, study, value("00080060"), int(count) if count else None)
