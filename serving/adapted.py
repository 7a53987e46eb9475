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


def adapt(
    model: Model, segmenter: Segmenter, component: Component, stable_bundle: Path | None
) -> tuple[Model, AdaptedSegmenter]:
    """Puts a test-time method around a model; equal digests still mean equal masks.

    Args:
        model: What the loaded model is called.
        segmenter: The model.
        component: The method with its options; those left out keep their defaults.
        stable_bundle: Folder of the RepOnly model, for methods that need one.

    Raises:
        ConfigError: The method or an option is unknown, or the models are not those that it is meant for.
        CheckpointError: The stable bundle is missing or damaged.
    """
    adaptation = build(component)
    stable = stable_digest = None
    if stable_bundle is not None:
        folder = stable_bundle.expanduser().resolve()
        stable, stable_digest = Segmenter.load(folder, segmenter.device), Model.of(folder, str(folder)).digest
    adapted = AdaptedSegmenter(adaptation, segmenter, stable)
    key = digest([model.digest, to_json(component), stable_digest])
    uri, name = (f"{which} + {component.label}" for which in (model.uri, model.name))
    return replace(model, uri=uri, digest=key, name=name), adapted
