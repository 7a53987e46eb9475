"""A request's body, unpacked onto disk as it arrives, under caps on bytes, ratio and time."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dropgen.errors import DropGenError, TooLargeError, VolumeError
from dropgen.features.studies.volume import GZIP_MAGIC
from dropgen.serving.header import HEADER_BYTES, Header, check_header
from dropgen.serving.series import ZIP_MAGIC

NAME = "the uploaded volume"
STEP = 2**20  # bytes unpacked at a time: what a bomb can take of memory
GZIP_WINDOW = 31  # zlib's word for "gzip, largest window"
FREE_BYTES = 2**24  # a file this small may be all zeros, which gzip shrinks a thousandfold


class SlowError(DropGenError):
    """The body did not arrive, or the answer was not made, in time."""


@dataclass(frozen=True)
class Caps:
    """What a server takes.

    Attributes:
        sent_bytes: Of a body.
        unpacked_bytes: Of the file that it holds.
        voxels: Of the volume.
        ratio: Unpacked bytes per byte sent, once the file is larger than 16 MiB.
        seconds: From the first to the last byte of a body.
    """

    sent_bytes: int = 512 * 2**20  # a CT of 512 x 512 x 1000 voxels at 2 bytes is 500 MiB
    unpacked_bytes: int = 2**30
    voxels: int = 2**29
    ratio: int = 200
    seconds: float = 600

    def unfolded(self, sent: int) -> int:
        """Bytes that so many sent ones may unfold to."""
        return min(self.unpacked_bytes, max(FREE_BYTES, self.ratio * sent))


@dataclass(frozen=True)
class Received:
    """A body that lies on disk, unpacked.

    Attributes:
        path: The .nii file, or the zip as it was sent.
        sha256: Hash of the unpacked bytes: the same volume has it, packed or not.
        header: What its first bytes say; None for a zip, which the reader's process judges.
    """

    path: Path
    sha256: str
    header: Header | None


async def receive(chunks: AsyncIterator[bytes], stated: int | None, path: Path, caps: Caps) -> Received:
    """Writes a body to `path`, and refuses it at the first byte that shows it is not to be taken.

    Args:
        chunks: The body.
        stated: Its Content-Length, where there is one; believed only where it is too large.
        path: Written anew; what a refused body left there is removed.
        caps: Where to stop.

    Raises:
        VolumeError: No body, neither NIfTI nor zip, or damaged.
        TooLargeError: A cap.
        SlowError: The time is over.
    """
    if stated is not None and stated > caps.sent_bytes:
        raise _too_large(caps.sent_bytes)
    try:
        with path.open("wb") as file:
            sink = _Sink(file, caps)
            try:
                async with asyncio.timeout(caps.seconds):
                    async for chunk in chunks:
                        sink.take(chunk)
            except TimeoutError:
                raise SlowError(f"the volume did not arrive within {caps.seconds:g} s; send it again") from None
            return Received(path, *sink.end())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def receive_file(source: Path, path: Path, caps: Caps) -> Received:
    """Does the same for a file that lies on a disk of the server.

    Raises:
        VolumeError: It cannot be read, or as `receive`.
        TooLargeError: As `receive`.
    """
    try:
        with source.open("rb") as stream, path.open("wb") as file:
            sink = _Sink(file, caps)
            while chunk := stream.read(STEP):
                sink.take(chunk)
            return Received(path, *sink.end())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise VolumeError(f"the file cannot be read on the server ({error.strerror}); check its path") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def head(path: Path, caps: Caps) -> Header | None:
    """What the first bytes of a received file say; None for a zip.

    Raises:
        VolumeError: As `check_header`.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    return None if start.startswith(ZIP_MAGIC) else check_header(start, caps.voxels)


class _Sink:
    def __init__(self, file: BinaryIO, caps: Caps) -> None:
        self._file = file
        self._caps = caps
        self._sent = self._unpacked = 0
        self._hash = hashlib.sha256()
        self._head = b""
        self._header: Header | None = None
        self._start = b""
        self._gzip: bool | None = None
        self._zip = False
        self._member: zlib._Decompress | None = None

    def take(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        if self._sent > self._caps.sent_bytes:
            raise _too_large(self._caps.sent_bytes)
        if self._gzip is None:  # the two bytes that tell may come one at a time
            self._start += chunk
            if len(self._start) < len(ZIP_MAGIC):
                return
            self._zip = self._start.startswith(ZIP_MAGIC)
            self._gzip, chunk = self._start.startswith(GZIP_MAGIC), self._start
        for part in self._unfold(chunk) if self._gzip else (chunk,):
            self._write(part)

    def end(self) -> tuple[str, Header | None]:
        if not self._sent:
            raise VolumeError("the request has no body; send a .nii or .nii.gz file, or a zip of one DICOM series")
        if self._gzip is None:
            self._write(self._start)
        if self._member is not None:
            raise VolumeError(f"{NAME} is damaged or truncated (its gzip stream has no end); send it again")
        if self._zip:
            return self._hash.hexdigest(), None
        if self._header is None:
            self._header = check_header(self._head, self._caps.voxels)
        if self._unpacked < self._header.file_bytes:
            raise VolumeError(
                f"{NAME} is damaged or truncated ({self._unpacked} bytes where its header promises "
                f"{self._header.file_bytes}); send it again"
            )
        return self._hash.hexdigest(), self._header

    def _unfold(self, chunk: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None:
                if not chunk.strip(b"\0"):  # nothing, or padding after the last member
                    return
                self._member = zlib.decompressobj(GZIP_WINDOW)
            try:
                part = self._member.decompress(chunk, STEP)
            except zlib.error as error:
                raise VolumeError(f"{NAME} is damaged or truncated ({error}); send it again") from None
            yield part
            if self._member.eof:
                chunk, self._member = self._member.unused_data, None
                continue
            chunk = self._member.unconsumed_tail
            if not chunk and len(part) < STEP:  # a full part can leave output behind that needs no more input
                return

    def _write(self, part: bytes) -> None:
        self._unpacked += len(part)
        if self._unpacked > self._caps.unpacked_bytes:
            raise _too_large(self._caps.unpacked_bytes)
        if self._unpacked > self._caps.unfolded(self._sent):
            raise TooLargeError(
                f"{NAME} unfolds to more than {self._caps.ratio} times what was sent, which no scan does; "
                "send it unpacked"
            )
        if self._header is None and not self._zip:
            self._head += part[: HEADER_BYTES - len(self._head)]
            if len(self._head) == HEADER_BYTES:
                self._header = check_header(self._head, self._caps.voxels)
                if self._header.file_bytes > self._caps.unpacked_bytes:
                    raise _too_large(self._caps.unpacked_bytes)
        self._hash.update(part)
        self._file.write(part)


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"the volume is larger than {limit / 2**20:g} MiB, the most this server takes; crop or resample it"
    )
