"""A loaded model with a test-time method around it, and a name of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dropgen.config import Component, to_json
from dropgen.manifest import digest
from dropgen.platform.adaptation import build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.models import Model


def adapted_model(model: Model, component: Component, stable_bundle: Path | None) -> Model:
    """What a model with a test-time method around it is called; equal digests still mean equal masks.

    Args:
        model: What the model itself is called.
        component: The method with its options; those left out keep their defaults.
        stable_bundle: Folder of the RepOnly model, for methods that need one.

    Raises:
        ConfigError: The method or an option is unknown.
        CheckpointError: The stable bundle is missing or damaged.
    """
    build(component)
    stable = None if stable_bundle is None else Model.of(stable_bundle, str(stable_bundle)).digest
    key = digest([model.digest, to_json(component), stable])
    uri, name = (f"{which} + {component.label}" for which in (model.uri, model.name))
    return replace(model, uri=uri, digest=key, name=name)


def adapt(segmenter: Segmenter, component: Component, stable_bundle: Path | None) -> AdaptedSegmenter:
    """Puts a test-time method around a model; arguments as for `adapted_model`.

    Raises:
        ConfigError: The models are not those that the method is meant for.
        CheckpointError: The stable bundle is missing or damaged.
    """
    stable = None if stable_bundle is None else Segmenter.load(stable_bundle, segmenter.device)
    return AdaptedSegmenter(build(component), segmenter, stable)
