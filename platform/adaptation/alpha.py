"""Alpha Tuning: one weight between a stable and an unstable model, chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dropgen.config import Component
from dropgen.platform.adaptation.adaptation import Adaptation, Target
from dropgen.platform.methods import Method
from dropgen.platform.methods.checks import require_choice, require_number
from dropgen.platform.methods.erm import Erm


def fuse(stable_kxyz: Tensor, unstable_kxyz: Tensor, alpha: float) -> Tensor:
    """z = alpha * z_stable + (1 - alpha) * z_unstable."""
    return alpha * stable_kxyz + (1 - alpha) * unstable_kxyz


@dataclass(frozen=True)
class Alpha(Adaptation):
    """Logits of the two models, blended over their windows, then fused; no weight is changed.

    Attributes:
        alpha: Weight of the stable side, in [0, 1]: 0 is the ERM model, 1 the RepOnly one.
        normalise: "none" fuses raw logits, whatever their scales, as published; "logsoftmax" log-probabilities.
    """

    alpha: float = 0.5
    normalise: str = "none"

    name: ClassVar[str] = "alpha"
    acts_on: ClassVar[str] = "logits"
    adapts: ClassVar[tuple[Component, ...]] = (Component.of("erm"),)
    needs_stable: ClassVar[bool] = True
    copies: ClassVar[float] = 3.0  # the stable logits, and both sides times their weights
    # From the stable side down, so that the larger one of equally good weights is taken.
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {"alpha": tuple(i / 10 for i in range(10, -1, -1))}
    source: ClassVar[str] = "the DropGen paper's fusion baseline"

    def __post_init__(self) -> None:
        require_number(self.name, "alpha", self.alpha, "[0, 1]")
        require_choice(self.name, "normalise", self.normalise, ("none", "logsoftmax"))

    @classmethod
    def suits(cls, method: Method) -> bool:
        """ERM, the unstable side."""
        return isinstance(method, Erm)

    def scores(self, target: Target, generator: np.random.Generator) -> Tensor:
        """The fused logits."""
        stable_kxyz, unstable_kxyz = target.stable_logits_kxyz, target.logits_kxyz
        if self.normalise == "logsoftmax":
            stable_kxyz, unstable_kxyz = stable_kxyz.log_softmax(dim=0), unstable_kxyz.log_softmax(dim=0)
        return fuse(stable_kxyz, unstable_kxyz, self.alpha)
