"""`dropgen listen`: CT and MR series that are pushed by C-STORE, segmented, and their DICOM-SEG pushed on.

Every series that was accepted ends with its result, or in quarantine with its cause; one that was killed goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from dropgen import console
from dropgen.errors import ConfigError, DropGenError, ResourceError, ServiceError, TooLargeError, VolumeError
from dropgen.serving.apart import ReadApart
from dropgen.serving.batch import open_work, segment_cases
from dropgen.serving.cases import Cases, Scan
from dropgen.serving.dicom_net import Peer, receiving, require_title, send
from dropgen.serving.interrupts import interrupt, on_signals
from dropgen.serving.journal import AUDIT_FILE, Journal
from dropgen.serving.line import Asked
from dropgen.serving.models import Model
from dropgen.serving.quality import DICOM_SEG
from dropgen.serving.spool import Spool

POLL_SECONDS = 0.5
RETRY_SECONDS = 30.0  # between tries of a destination or a service that is away
AWAY = (ServiceError, ResourceError, OSError)  # what may be there again later
Segment = Callable[[Path, Path], dict[str, Any]]


@dataclass
class Listener:
    """What becomes of the series of a spool.

    Attributes:
        spool: Where they lie.
        results: Gets a folder for each that has a mask.
        segment: Makes the masks of a folder, as `dropgen segment` does.
        deliver: Pushes a DICOM-SEG on; None where it stays.
        told: Gets a line for each series that has ended.
    """

    spool: Spool
    results: Path
    segment: Segment
    deliver: Callable[[Path, str], None] | None
    told: Journal
    _later: dict[str, float] = field(default_factory=dict)

    def work(self, quiet: float) -> None:
        """Takes every series that is complete to its end; what has to wait for others is tried again later."""
        self.spool.settle(quiet)
        for folder in self.spool.ready():
            if time.monotonic() < self._later.get(folder.name, 0):
                continue
            try:
                self._one(folder)
                self._later.pop(folder.name, None)
            except AWAY as error:
                console.warn(f"series {folder.name} waits {RETRY_SECONDS:g} s: {error}")
                self._later[folder.name] = time.monotonic() + RETRY_SECONDS

    def _one(self, folder: Path) -> None:
        uid, count = folder.name, sum(1 for _ in folder.glob("*.dcm"))
        target = self.results / uid
        try:
            record = self.spool.begin(folder)
            self._make(folder, target)
            self.spool.outlived(folder, record)
            if self.deliver is not None:
                self.deliver(target / f"{uid}{DICOM_SEG}", record["from"])
        except Exception as error:  # whatever this series brought about, the others are not to pay for it
            if isinstance(error, AWAY) and not isinstance(error, TooLargeError):
                raise
            cause = " ".join(str(error).split()) if isinstance(error, DropGenError) else type(error).__name__
            self.spool.quarantine(folder, cause)
            self.told.add(series=uid, instances=count, outcome="quarantined", cause=cause)
            console.say(f"quarantined: series {uid}, {count} slices ({cause})")
            return
        self.spool.finish(folder)
        self.told.add(series=uid, instances=count, outcome="done", sent=self.deliver is not None)
        console.say(f"done: series {uid}, {count} slices")

    def _make(self, folder: Path, target: Path) -> None:
        for case in self.segment(folder, target)["cases"]:
            if case["outcome"] in ("failed", "left out"):
                raise VolumeError(case["reason"])


def command(arguments: argparse.Namespace) -> None:
    """`dropgen listen`; returns when it is interrupted or terminated.

    Raises:
        ConfigError: An address that others reach without a list of who may call, or a title or destination is none.
        ResourceError: The port is taken.
        RegistryError: There is no such model.
    """
    title = require_title(arguments.aet)
    allowed = [require_title(one) for one in arguments.accept]
    host = _require_private(arguments.host, allowed)
    peer = None if arguments.to is None else Peer.parse(arguments.to)
    if arguments.quiet <= 0:
        raise ConfigError(f"--quiet {arguments.quiet:g} would take a series apart; give some seconds")
    audit = Journal(arguments.root / "service" / AUDIT_FILE, durable=True)
    model, segment = _opened(arguments, audit)
    place = arguments.root / "listen"

    def deliver(path: Path, sender: str) -> None:
        assert peer is not None
        uid = send(path, peer, title)
        audit.add(sop_instance_uid=uid, stored=str(peer), received_from=sender)

    listener = Listener(
        Spool(place), place / "results", segment, None if peer is None else deliver, Journal(place / "series.jsonl")
    )
    on_signals(interrupt)
    with (
        contextlib.suppress(KeyboardInterrupt),
        receiving(listener.spool, title, host, arguments.port, allowed) as port,
    ):
        ready = {"ready": True, "title": title, "host": host, "port": port, "model": asdict(model)}
        console.document(ready, indent=None)
        console.say(f"{title} listens on {host}:{port} with {model.uri} (Ctrl-C stops it)")
        while True:
            listener.work(arguments.quiet)
            threading.Event().wait(POLL_SECONDS)
    console.say("stopped; what was accepted and is not done waits for the next start")


def _opened(arguments: argparse.Namespace, audit: Journal) -> tuple[Model, Segment]:
    """What `dropgen segment` would use, opened once; a series at a time, each read in a process of its own."""
    alone = {"workers": None, "address": None, "in_flight": 1}
    given = argparse.Namespace(**vars(arguments), **alone, adapt=None, stable_bundle=None, uncertainty=False)
    model, work = open_work(given, 1, ReadApart(arguments.derived))
    asked = Asked(arguments.modality, dicom_seg=arguments.dicom_seg)
    if model.channels:
        raise ConfigError(
            f"{model.uri} takes images of {len(model.channels)} channels, {', '.join(model.channels)}, and a DICOM "
            "series is one of them; name a model of one channel"
        )

    def segment(folder: Path, target: Path) -> dict[str, Any]:
        nonlocal model, work
        if arguments.url is not None:  # its alias may have been moved since
            model, work = open_work(given, 1, ReadApart(arguments.derived))
        scan = Scan(folder.name, folder.name, tuple(sorted(folder.glob("*.dcm"))), series=True)
        return segment_cases(Cases((scan,)), folder, target, model, work, audit, asked)

    return model, segment


def _require_private(host: str, allowed: list[str]) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    try:
        found = ipaddress.IPv4Address(address)
    except ValueError:
        raise ConfigError(f"--host {host} is no IPv4 address; 127.0.0.1 is this machine alone") from None
    if not found.is_loopback and not allowed:
        raise ConfigError(
            f"--host {host} is an address that others reach, and nobody was named who may call; give --accept TITLE, "
            "or use 127.0.0.1"
        )
    return address


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["listen", *sys.argv[1:]]))
