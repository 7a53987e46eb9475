"""The models of one replica: found by name, version or alias, loaded on demand, the least recently used let go."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.labelling import Labelling
from dropgen.manifest import digest
from dropgen.platform.bundle import WEIGHTS_FILE, read_record
from dropgen.platform.card import RESEARCH_ONLY
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import Registered, resolve

POLL_SECONDS = 5.0  # how long an alias that was moved may still give its old version
WANTED = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})(?:@(?P<alias>[A-Za-z0-9._-]{1,64})|/(?P<version>[0-9]{1,9}))?")


@dataclass(frozen=True)
class Model:
    """Which model stands behind an answer.

    Attributes:
        uri: Where it was asked for: `models:/name@alias`, or a bundle's folder.
        digest: Hash over specification and weights; equal digests mean equal masks.
        classes: Class names; the index is the label value where there are no regions.
        name: As it is registered, or as its bundle says.
        version: As it is registered, else the digest.
        codes: What classes are in a terminology, as `features.studies.codes.Code` has it.
        regions: Of every class but background the values that it is made of in a mask, where classes overlap.
        channels: Names of an image's channels, in their order; none where there is one.
    """

    uri: str
    digest: str
    classes: tuple[str, ...]
    name: str
    version: str
    codes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    regions: tuple[tuple[int, ...], ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def pinned(self) -> str:
        """How a service is asked for this very version, whatever its alias is moved to."""
        return f"{self.name}/{self.version}"

    @property
    def labelling(self) -> Labelling:
        """What the values of its masks mean."""
        return Labelling(self.classes, self.regions)

    @property
    def note(self) -> str:
        """What the header of a mask says of it, which has room for 79 ASCII characters."""
        return f"{RESEARCH_ONLY}; {self.name} {self.version}".encode("ascii", "replace").decode()[:79]

    @property
    def comment(self) -> str:
        """What a mask says of itself in full: who made it, what for, and what its values are in a terminology; JSON."""
        values = self.regions or tuple((value,) for value in range(1, len(self.classes)))
        segments = [
            {"name": name, "values": list(held), "code": dict(self.codes[name]) if name in self.codes else None}
            for name, held in zip(self.classes[1:], values, strict=True)
        ]
        made_by = {"algorithm": self.name, "version": self.version, "digest": self.digest, "use": RESEARCH_ONLY}
        return json.dumps({**made_by, "segments": segments})

    @classmethod
    def of(cls, bundle: Path, uri: str) -> Model:
        """Describes a bundle that is not registered."""
        record = read_record(bundle)
        spec, key = record["spec"], digest(record)
        regions = tuple(map(tuple, spec.get("regions", ())))
        channels = tuple(spec.get("channels", ()))
        return cls(uri, key, tuple(spec["classes"]), spec["name"], key, spec.get("codes", {}), regions, channels)

    @classmethod
    def registered(cls, found: Registered, uri: str) -> Model:
        """Describes a registered version."""
        return replace(cls.of(found.bundle, uri), name=found.name, version=found.version)


@dataclass(frozen=True)
class Served:
    """A registered version as it answers.

    Attributes:
        registered: Name, version, bundle, card.
        model: What answers say of it.
        modalities: Of which one must be named with a request; empty where none need be.
    """

    registered: Registered
    model: Model
    modalities: tuple[str, ...]

    def require_modality(self, modality: str | None) -> None:
        """Refuses a request before its body arrives.

        Raises:
            VolumeError: The model needs a modality, and this is none of its.
        """
        if self.modalities and modality not in self.modalities:
            raise VolumeError(
                f"model '{self.registered.name}' scales intensities by modality, and the request names "
                f"{'none' if modality is None else 'an unknown one'}; add ?modality= one of "
                f"{', '.join(self.modalities)}"
            )

    def require_one_channel(self) -> None:
        """Refuses a request before its body arrives, because a body holds one volume.

        Raises:
            VolumeError: The model takes several channels.
        """
        if names := self.model.channels:
            raise VolumeError(
                f"model '{self.registered.name}' takes images of {len(names)} channels, {', '.join(names)}, and the "
                "service takes one volume; segment such images with dropgen segment, without --url"
            )

    def modality_of(self, given: str | None, tag: str | None) -> str | None:
        """The modality of a volume: of the request, or of its DICOM tag; never guessed.

        Raises:
            VolumeError: The model needs one and there is none, or the two contradict each other.
        """
        found = named_by(tag, self.modalities)
        if given is None:
            given = found
        self.require_modality(given)
        if found is not None and given != found:
            raise VolumeError(f"the request says modality '{given}' and the DICOM tag says {tag}; leave ?modality= out")
        return given


def named_by(tag: str | None, modalities: Sequence[str]) -> str | None:
    """Which of a model's modalities a DICOM tag names; CT and `ct` are the same."""
    return next((name for name in modalities if tag is not None and name.casefold() == tag.casefold()), None)


class Models:
    """Finds and holds models; may be called from several threads.

    Args:
        root: Output root with the registry.
        default: `name@alias` for requests that name none.
        max_bytes: What all loaded models may take together.
        device: Where they predict.
        clock: Seconds; decides when an alias is looked up again.
    """

    def __init__(
        self,
        root: Path,
        default: str,
        max_bytes: int,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._default = default
        self._max_bytes = max_bytes
        self._device = device
        self._clock = clock
        self._found: dict[str, tuple[float, Served]] = {}
        self._loaded: OrderedDict[str, tuple[Segmenter, int]] = OrderedDict()
        self._lock = threading.RLock()

    def find(self, wanted: str | None = None) -> Served:
        """The version behind `name`, `name@alias` or `name/version`; an alias is looked up every 5 s.

        Raises:
            VolumeError: That is no name of a model.
            RegistryError: There is none.
        """
        text = wanted or self._default
        match = WANTED.fullmatch(text)
        if match is None:
            raise VolumeError("?model= takes a registered name, name@alias or name/version, and nothing else")
        with self._lock:
            known = self._found.get(text)
            if known is not None and self._clock() - known[0] < POLL_SECONDS:
                return known[1]
        alias, version = match["alias"] or "champion", match["version"]
        registered = resolve(self._root, match["name"], alias, version)
        suffix = f"@{alias}" if version is None else f"/{version}"
        intensity = read_record(registered.bundle)["spec"]["intensity"]
        model = Model.registered(registered, f"models:/{registered.name}{suffix}")
        by_modality = isinstance(intensity, dict) and not model.channels
        served = Served(registered, model, tuple(sorted(intensity)) if by_modality else ())
        with self._lock:
            self._found[text] = self._clock(), served
        return served

    def segmenter(self, served: Served) -> Segmenter:
        """The model, loaded unless it is there already.

        Raises:
            TooLargeError: It cannot fit, with both numbers.
            CheckpointError: Its bundle is damaged.
        """
        with self._lock:
            if (held := self._loaded.get(served.model.digest)) is not None:
                self._loaded.move_to_end(served.model.digest)
                return held[0]
            least = (served.registered.bundle / WEIGHTS_FILE).stat().st_size
            self._make_room(least, served)
            before = _resident()
            segmenter = Segmenter.load(served.registered.bundle, self._device)
            # The weights of an extractor come on top of the bundle's own; the process has grown by both.
            size = max(least, _resident() - before)
            self._make_room(size, served)
            self._loaded[served.model.digest] = segmenter, size
            return segmenter

    def state(self) -> dict[str, Any]:
        """Loaded models and the bytes that they take."""
        with self._lock:
            return {"loaded": list(self._loaded), "bytes": self._used(), "max_bytes": self._max_bytes}

    def _used(self) -> int:
        return sum(size for _, size in self._loaded.values())

    def _make_room(self, size: int, served: Served) -> None:
        if size > self._max_bytes:
            raise TooLargeError(
                f"model '{served.registered.name}' takes {size / 2**20:.1f} MiB of memory where all models "
                f"together may take {self._max_bytes / 2**20:.1f} MiB; start the service with a larger --models-gb"
            )
        while self._used() + size > self._max_bytes:
            self._loaded.popitem(last=False)


def _resident() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)
