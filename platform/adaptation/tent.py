"""TENT: a test volume's own prediction is made more certain, by its BatchNorm layers alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.platform.adaptation.adaptation import Adaptation, Target
from dropgen.platform.adaptation.batchnorm import affine_parameters, use_batch_statistics
from dropgen.platform.adaptation.crops import draw_crop
from dropgen.platform.methods import Method
from dropgen.platform.methods.checks import require_choice, require_count, require_number
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.erm import Erm
from dropgen.platform.segmenter import Segmenter

log = logging.getLogger(__name__)


def entropy(logits_bkxyz: Tensor) -> Tensor:
    """H(v) = -sum_k p_k log p_k of every voxel, p = softmax(logits): 0 for one-hot p, ln K for uniform p.

    Args:
        logits_bkxyz: `[B, K, ...]`.

    Returns:
        `[B, ...]`, in nats.
    """
    log_p = logits_bkxyz.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@dataclass(frozen=True)
class Tent(Adaptation):
    """Entropy minimisation over the affine parameters of BatchNorm.

    Per volume: from the stored weights, `steps` steps of plain SGD on the mean entropy of random crops, then the
    sliding-window prediction. Nothing guards against a collapse into one class; the entropy of the first crop before
    and after is logged.

    Attributes:
        learning_rate: Of SGD without momentum and weight decay.
        steps: Gradient steps per volume; 0 changes no weight.
        crops: Crops per step.
        bn_stats: "batch": BatchNorm uses the statistics of its current input, as published, also when predicting;
            "source": the stored running statistics.
    """

    learning_rate: float = 1e-4
    steps: int = 10
    crops: int = 1
    bn_stats: str = "batch"

    name: ClassVar[str] = "tent"
    acts_on: ClassVar[str] = "layers"
    needs_unet: ClassVar[bool] = True
    adapts: ClassVar[tuple[Component, ...]] = (Component.of("erm"), Component.of("dropgen", p=0.0))
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "learning_rate": (1e-5, 1e-4, 1e-3, 1e-2),
        "steps": (1, 5, 10, 20),
        "bn_stats": ("source", "batch"),
    }
    source: ClassVar[str] = "Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021"

    def __post_init__(self) -> None:
        require_number(self.name, "learning_rate", self.learning_rate, "(0, inf)")
        require_count(self.name, "steps", self.steps, at_least=0)
        require_count(self.name, "crops", self.crops, at_least=1)
        require_choice(self.name, "bn_stats", self.bn_stats, ("batch", "source"))

    @property
    def learns_from(self) -> int:
        """All crops of a step."""
        return self.crops

    @classmethod
    def suits(cls, method: Method) -> bool:
        """ERM, and DropGen that drops nothing."""
        return isinstance(method, Erm) or (isinstance(method, DropGen) and method.p == 0)

    def scores(self, target: Target, generator: np.random.Generator) -> Tensor:
        """The adapted model's logits."""
        return self.adapt(target, generator).logits(target.prepared, target.features)

    def adapt(self, target: Target, generator: np.random.Generator) -> Segmenter:
        """A copy of the model, adapted to the volume."""
        adapted = target.model.clone()
        network = adapted.network
        parameters = affine_parameters(network)
        if not parameters:
            raise ConfigError(f"tent: segmenter '{adapted.spec.name}' has no BatchNorm layer to adapt; use another one")
        network.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        if self.bn_stats == "batch":
            use_batch_statistics(network)
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate)
        first_bcxyz, before = None, 0.0
        for _ in range(self.steps):
            inputs_bcxyz = self._crops(adapted, target, generator)
            if inputs_bcxyz is None:
                break
            loss = entropy(network(inputs_bcxyz)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if first_bcxyz is None:
                first_bcxyz, before = inputs_bcxyz, loss.item()
        if first_bcxyz is not None:
            with torch.no_grad():
                after = entropy(network(first_bcxyz)).mean().item()
            log.info("tent: mean entropy of the first crop went from %.4f to %.4f nats", before, after)
        return adapted

    def _crops(self, adapted: Segmenter, target: Target, generator: np.random.Generator) -> Tensor | None:
        boxes = [draw_crop(target.prepared.unit, adapted.spec.crop, generator) for _ in range(self.crops)]
        inputs = [adapted.window_input(target.prepared, target.features, box) for box in boxes if box is not None]
        return torch.cat(inputs) if inputs else None
