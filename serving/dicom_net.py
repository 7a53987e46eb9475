"""DICOM's own network protocol: series pushed to us, DICOM-SEG that we push. The only file that knows pynetdicom.

An AE title is a name and no secret, and the protocol is not encrypted: who can reach the port can use an allowed one.
Source of the services: DICOM PS3.7 and PS3.8.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from dropgen.errors import ConfigError, ResourceError, ServiceError, TooLargeError, VolumeError
from dropgen.features.studies.dicom import CLASSES, DECODE_ERRORS, SYNTAXES
from dropgen.serving.spool import Spool

AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # 16 characters of ASCII, no backslash
ASSOCIATIONS = 8
INSTANCE_BYTES = 2**28  # 4096 x 4096 voxels of 32 bits are a quarter
SECONDS = 60  # that a peer may be silent
SUCCESS, NO_ROOM, MISMATCH, UNREADABLE = 0x0000, 0xA700, 0xA900, 0xC000
LATER = range(0xA700, 0xA800)  # out of resources
WARNINGS = range(0xB000, 0xC000)  # stored all the same
# In the order of a file, of which nothing beyond the last of them is read in this process.
TAGS: list[BaseTag | int] = [Tag(name) for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")]
HEAD_BYTES = 2**22


@dataclass(frozen=True)
class Peer:
    """Another application entity."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Reads `TITLE@HOST:PORT`.

        Raises:
            ConfigError: It is none.
        """
        title, _, address = text.rpartition("@")
        host, _, port = address.rpartition(":")
        if not (AE_TITLE.fullmatch(title) and host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigError(f"'{text}' is no destination; write TITLE@HOST:PORT, for example PACS@10.0.0.5:11112")
        return cls(title, host, int(port))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def require_title(title: str) -> str:
    """Returns an AE title.

    Raises:
        ConfigError: It is none.
    """
    if not AE_TITLE.fullmatch(title):
        raise ConfigError(f"'{title}' is no AE title; they have 1 to 16 characters of ASCII and no backslash")
    return title


@contextmanager
def receiving(spool: Spool, title: str, host: str, port: int, allowed: Sequence[str]) -> Iterator[int]:
    """Accepts CT and MR images, uncompressed, until the end of the block.

    Args:
        spool: Gets them.
        title: Ours; an association that calls another is rejected.
        host: IPv4 address to listen on.
        port: 0 for a free one.
        allowed: Titles that may call; all where there are none.

    Yields:
        The port.

    Raises:
        ConfigError: pynetdicom is not installed.
        ResourceError: The port is taken.
    """
    net = _pynetdicom()
    entity = net.AE(title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(allowed)
    entity.maximum_associations = ASSOCIATIONS
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = SECONDS
    for kind in CLASSES:
        entity.add_supported_context(kind, list(SYNTAXES))
    entity.add_supported_context("1.2.840.10008.1.1")  # C-ECHO
    received: dict[Any, int] = {}

    def count(event: Any) -> None:
        """Ends an association whose image is too large, before all of it is in memory."""
        received[event.assoc] = received.get(event.assoc, 0) + len(event.pdu)
        if received[event.assoc] > INSTANCE_BYTES:
            event.assoc.abort(block=False)

    def forget(event: Any) -> None:
        received.pop(event.assoc, None)

    handlers = [
        (net.evt.EVT_C_STORE, lambda event: _keep(event, spool)), (net.evt.EVT_PDU_RECV, count),
        (net.evt.EVT_DIMSE_RECV, forget), (net.evt.EVT_CONN_CLOSE, forget),
    ]  # fmt: skip
    try:
        server = entity.start_server((host, port), block=False, evt_handlers=handlers)
    except (OSError, OverflowError) as error:
        cause = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        raise ResourceError(f"cannot listen on {host}:{port} ({cause}); choose another --port") from None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


def _keep(event: Any, spool: Spool) -> int:
    try:
        content = event.encoded_dataset()
        header = read_partial(io.BytesIO(content[:HEAD_BYTES]), stop_when=_beyond, specific_tags=TAGS)
        instance, series = str(header.SOPInstanceUID), str(header.SeriesInstanceUID)
        if instance != event.request.AffectedSOPInstanceUID or header.SOPClassUID != event.context.abstract_syntax:
            return MISMATCH
        spool.put(series, instance, content, str(event.assoc.requestor.ae_title))
    except TooLargeError:
        return NO_ROOM
    except OSError as error:
        return UNREADABLE if error.errno is None else NO_ROOM
    except (VolumeError, *DECODE_ERRORS):
        return UNREADABLE
    return SUCCESS


def _beyond(tag: Any, vr: str | None, length: int) -> bool:
    return bool(tag > TAGS[-1])


def send(path: Path, peer: Peer, title: str) -> str:
    """Pushes one DICOM file; returns its SOPInstanceUID.

    Raises:
        ServiceError: The peer cannot be reached, rejects us or is out of room; it may take the file later.
        VolumeError: The peer does not take this file.
    """
    net = _pynetdicom()
    data = dcmread(path)
    entity = net.AE(title)
    entity.connection_timeout = entity.acse_timeout = entity.network_timeout = SECONDS
    entity.dimse_timeout = SECONDS
    entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    association = entity.associate(peer.host, peer.port, ae_title=peer.title)
    if not association.is_established:
        if association.rejected_contexts:
            raise VolumeError(f"{peer} takes no {data.SOPClassUID.name}; try --dicom-seg binary, or teach it the class")
        raise ServiceError(f"{peer} cannot be reached or rejects {title}; check the address and its list of titles")
    try:
        status = association.send_c_store(data).get("Status")
    finally:
        association.release()
    if status is None or status in LATER:
        raise ServiceError(f"{peer} did not keep the DICOM-SEG ({'no answer' if status is None else hex(status)})")
    if status != SUCCESS and status not in WARNINGS:
        raise VolumeError(f"{peer} refuses the DICOM-SEG with status {status:#06x}; see its log")
    return str(data.SOPInstanceUID)


def _pynetdicom() -> Any:
    try:
        import pynetdicom
    except ImportError:
        raise ConfigError("DICOM's network needs the package pynetdicom: pip install 'dropgen[dicom-net]'") from None
    return pynetdicom
