"""A Segmenter that adapts to every volume before it segments it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from torch import Tensor

from dropgen.errors import ConfigError
from dropgen.features.extractors.rolling import RollingFeatures
from dropgen.features.extractors.tiles import peak_bytes
from dropgen.features.studies.prepare import Prepared
from dropgen.platform.adaptation.adaptation import Adaptation, Target
from dropgen.platform.evaluation.inference import WINDOWS_AT_ONCE, Collect, Features, Slab, T
from dropgen.platform.methods.rep_only import RepOnly
from dropgen.platform.segmenter import Segmenter

SEED = 123
SHARED = ("classes", "spacing", "crop", "intensity", "channels")


class AdaptedSegmenter(Segmenter):
    """Predicts as the Segmenter it is, from scores that a test-time method made.

    Crops are drawn from the same seed for every volume, so a mask depends on nothing but models and volume.

    Args:
        adaptation: The method with its hyperparameters.
        model: The model that it adapts; a copy of it, anew for every volume.
        stable: The RepOnly model that it needs, or None.

    Raises:
        ConfigError: The method is not meant for these models, or they do not fit together.
    """

    def __init__(self, adaptation: Adaptation, model: Segmenter, stable: Segmenter | None = None) -> None:
        require_models(adaptation, model, stable)
        super().__init__(model.spec, model.network, model.method, model._extractor, model.device)
        self.adaptation = adaptation
        self._model, self._stable = model, stable

    @property
    def feature_channels(self) -> int:
        """Channels of the features that either network reads."""
        return max(model.feature_channels for model in self._models)

    @property
    def whole_features(self) -> bool:
        """Whether the adapted model reads features, whose crops are drawn anywhere."""
        return self._model._volume_extractor is not None

    @property
    def score_copies(self) -> float:
        """Those of the test-time method, and the scores that it returns."""
        return 1 + self.adaptation.copies

    @cached_property
    def window_bytes(self) -> int:
        """Of the larger model; as many windows as are learned from at once may take more, forward and backward."""
        learning = -(-self.adaptation.learns_from * self._model.learning_bytes // WINDOWS_AT_ONCE)
        return max(learning, *(model.window_bytes for model in self._models))

    def extraction_bytes(self, shape: tuple[int, int, int]) -> int:
        """Of the model whose features take more."""
        extractor = self._model._volume_extractor
        of_model = 0 if extractor is None else peak_bytes(extractor, shape)
        return of_model if self._stable is None else max(of_model, self._stable.extraction_bytes(shape))

    @property
    def _models(self) -> tuple[Segmenter, ...]:
        return (self._model,) if self._stable is None else (self._model, self._stable)

    def logits(self, prepared: Prepared, features: np.ndarray | None = None) -> Tensor:
        """What the adaptation made of the volume: logits or probabilities, whose argmax is the mask."""
        target = Target(self._model, self._stable, prepared, features)
        return self.adaptation.scores(target, np.random.default_rng(SEED))

    def over_slabs(self, prepared: Prepared, features: Features | None, collect: Collect[T]) -> T:
        """One slab, the whole volume: a test-time method learns from or fuses the scores of all voxels."""
        assert not isinstance(features, RollingFeatures)  # crops are drawn anywhere
        return collect([Slab(0, 0, self.logits(prepared, features))])


def require_models(adaptation: Adaptation, model: Segmenter, stable: Segmenter | None) -> None:
    """Checks that a test-time method gets the models that it is meant for.

    Raises:
        ConfigError: It does not.
    """
    name = adaptation.name
    if model.spec.regions:
        raise ConfigError(
            f"{name} takes voxels for one class alone and '{model.spec.study}' has regions that overlap; leave it out"
        )
    if not adaptation.suits(model.method):
        fit = " or ".join(component.label for component in adaptation.adapts)
        raise ConfigError(
            f"{name} is not meant for a model of method '{model.spec.method.label}'; give it one of {fit}"
        )
    if (stable is not None) != adaptation.needs_stable:
        wants = "needs a second, stable model of method rep_only" if stable is None else "takes one model alone"
        raise ConfigError(f"{name} {wants}; {'add' if stable is None else 'leave out'} the stable one")
    if stable is None:
        return
    if not isinstance(stable.method, RepOnly):
        raise ConfigError(f"{name} needs a stable model of method rep_only, not of '{stable.spec.method.label}'")
    for field in SHARED:
        one, two = getattr(model.spec, field), getattr(stable.spec, field)
        if one != two:
            raise ConfigError(f"{name}: the models differ in {field}, {one} and {two}; train both on one study")
