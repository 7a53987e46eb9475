"""What makes the masks of `dropgen segment`: a model in this process, or a running service."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dropgen import console, memory
from dropgen.config import Component
from dropgen.errors import ConfigError, VolumeError
from dropgen.features.studies.volume import Volume, read_grid
from dropgen.platform.evaluation.memory import MemoryPlan
from dropgen.platform.evaluation.quality import ClassRecord
from dropgen.platform.evaluation.uncertainty import MAPS, extra_passes, predict_uncertain
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import resolve
from dropgen.serving.adapted import adapt
from dropgen.serving.cases import Scan
from dropgen.serving.client import Client
from dropgen.serving.models import Model, named_by
from dropgen.serving.quality import Segmented
from dropgen.serving.room import plan_room, require_room
from dropgen.serving.tokens import client_token

Segment = Callable[[Scan], Segmented]


@dataclass(frozen=True)
class Backend:
    """What masks are made with.

    Attributes:
        model: Which model it is.
        segment: Makes the mask of one scan.
        records: What its training labels say of each class; none behind a service, which does not say.
        plan: What a NIfTI scan will take, from its header; None where another process takes it.
    """

    model: Model
    segment: Segment
    records: Mapping[str, ClassRecord]
    plan: Callable[[Scan], MemoryPlan] | None


def open_backend(arguments: argparse.Namespace) -> Backend:
    """Opens what the options of `dropgen segment` name.

    Raises:
        ConfigError: Options exclude each other.
        ServiceError: The service cannot be reached.
        RegistryError: There is no such model.
        CheckpointError: Its bundle is damaged.
    """
    if arguments.adapt is None and arguments.stable_bundle is not None:
        raise ConfigError("--stable-bundle is for the test-time methods sfb and alpha; name one with --adapt")
    if arguments.uncertainty and (arguments.url is not None or arguments.adapt is not None):
        raise ConfigError("--uncertainty asks one plain model in this process; leave out --url and --adapt")
    if arguments.url is None:
        return _in_process(arguments)
    if arguments.bundle is not None or arguments.adapt is not None:
        raise ConfigError("--url excludes --bundle and --adapt; the service has its own model")
    client = Client(arguments.url, client_token(arguments.root, arguments.token_file, arguments.url))

    def through(scan: Scan) -> Segmented:
        loaded, modality = scan.load(), scan.modality or arguments.modality
        mask = client.segment_series(scan.paths, modality) if scan.series else client.segment(scan.paths[0], modality)
        return Segmented(loaded.volume, mask, slices=loaded.slices)

    return Backend(client.model(), through, {}, None)


def _in_process(arguments: argparse.Namespace) -> Backend:
    if arguments.bundle is not None:
        bundle = arguments.bundle.expanduser().resolve()
        model = Model.of(bundle, str(bundle))
    else:
        found = resolve(arguments.root, arguments.name, arguments.alias)
        bundle, model = found.bundle, Model.registered(found, f"models:/{arguments.name}@{arguments.alias}")
    segmenter = Segmenter.load(bundle, "cuda" if torch.cuda.is_available() else "cpu")
    if arguments.adapt is not None:
        model, segmenter = adapt(model, segmenter, Component.parse(arguments.adapt), arguments.stable_bundle)
    maps = MAPS if arguments.uncertainty else 0
    if arguments.uncertainty:
        console.say(f"--uncertainty: {1 + extra_passes(segmenter)} passes over every volume instead of 1")

    def segment(scan: Scan) -> Segmented:
        if not scan.series:
            require_room(segmenter, read_grid(scan.paths[0]), memory.available(), maps)
        loaded = scan.load()
        volume = loaded.volume
        if scan.series:
            require_room(segmenter, volume, memory.available(), maps)
        modality = _modality(segmenter, scan.modality or arguments.modality, loaded.tag)
        if not arguments.uncertainty:
            mask = Volume(segmenter.predict(volume, modality), volume.affine)
            return Segmented(volume, mask, slices=loaded.slices)
        array, uncertainty = predict_uncertain(segmenter, volume, modality)
        return Segmented(volume, Volume(array, volume.affine), uncertainty, loaded.slices)

    def plan(scan: Scan) -> MemoryPlan:
        return plan_room(segmenter, read_grid(scan.paths[0]), maps)

    return Backend(model, segment, segmenter.spec.training, plan)


def _modality(segmenter: Segmenter, given: str | None, tag: str | None) -> str | None:
    """The modality of a scan: as it was given, or by its DICOM tag; never guessed."""
    intensity = segmenter.spec.intensity
    found = named_by(tag, () if isinstance(intensity, str) else tuple(intensity))
    if given is not None and found is not None and given != found:
        raise VolumeError(f"its modality is given as '{given}' and its DICOM tag says {tag}; leave the given one out")
    return given or found
