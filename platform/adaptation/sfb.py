"""SFB: an unstable model learns a test volume from a stable one, and both decide together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.platform.adaptation.adaptation import Adaptation, Target
from dropgen.platform.adaptation.batchnorm import affine_parameters
from dropgen.platform.adaptation.boosting import boost
from dropgen.platform.adaptation.crops import draw_crop
from dropgen.platform.adaptation.temperature import fit_temperature
from dropgen.platform.methods import Method
from dropgen.platform.methods.checks import require_choice, require_count, require_number
from dropgen.platform.methods.erm import Erm
from dropgen.platform.segmenter import Segmenter


@dataclass(frozen=True)
class Sfb(Adaptation):
    """Stable feature boosting, in rounds over pseudo-labels Q.

    Q_0 = p_S, the calibrated prediction of the stable model. Round t: the unstable model takes `steps` steps on
    KL(Q_{t-1} || p_U) over random crops and predicts the volume; its prediction is corrected for the confusion of
    Q_{t-1} (`boosting.correct`) and combined with p_S, never with Q_{t-1}, to Q_t (`boosting.combine`). Network and
    optimizer (Adam) go on from round to round and start anew with every volume. BatchNorm keeps its running statistics.

    Attributes:
        steps: Gradient steps per round; 0 leaves the unstable model as it is.
        learning_rate: Of Adam.
        rounds: How often the pseudo-labels are renewed.
        parameters: What is trained: "all" weights, or "bn", the affine parameters of BatchNorm.
        temperature: T of p_S = softmax(z_S / T). None is what `calibrated` fits, and 1 where it was not called.
    """

    steps: int = 10
    learning_rate: float = 1e-4
    rounds: int = 3
    parameters: str = "all"
    temperature: float | None = None

    name: ClassVar[str] = "sfb"
    acts_on: ClassVar[str] = "weights"
    adapts: ClassVar[tuple[Component, ...]] = (Component.of("erm"),)
    needs_stable: ClassVar[bool] = True
    copies: ClassVar[float] = 2.5  # the stable logits, and in float16 p_S, the last Q and the next
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "steps": (5, 10, 20),
        "learning_rate": (1e-5, 1e-4, 1e-3),
    }
    source: ClassVar[str] = "Eastwood et al., Spuriosity Didn't Kill the Classifier, NeurIPS 2023"

    def __post_init__(self) -> None:
        require_count(self.name, "steps", self.steps, at_least=0)
        require_number(self.name, "learning_rate", self.learning_rate, "(0, inf)")
        require_count(self.name, "rounds", self.rounds, at_least=1)
        require_choice(self.name, "parameters", self.parameters, ("all", "bn"))
        if self.temperature is not None:
            require_number(self.name, "temperature", self.temperature, "(0, inf)")

    @property
    def learns_from(self) -> int:
        """One crop a step."""
        return 1

    @classmethod
    def suits(cls, method: Method) -> bool:
        """ERM, the unstable side."""
        return isinstance(method, Erm)

    def calibrated(self, cases: Iterable[tuple[Target, np.ndarray]]) -> Self:
        """Fits the temperature of the stable model, unless it is given."""
        if self.temperature is not None:
            return self
        pairs = [(target.stable_logits_kxyz.half(), torch.from_numpy(label.copy())) for target, label in cases]
        return replace(self, temperature=fit_temperature([z for z, _ in pairs], [label for _, label in pairs]))

    def scores(self, target: Target, generator: np.random.Generator) -> Tensor:
        """The last pseudo-labels, float32 probabilities."""
        adapted = target.model.clone()
        optimizer = torch.optim.Adam(self._trained(adapted), lr=self.learning_rate)
        stable_kxyz = (target.stable_logits_kxyz / (self.temperature or 1.0)).softmax(dim=0).half()
        pseudo_kxyz = stable_kxyz
        for _ in range(self.rounds):
            self.learn(adapted, optimizer, target, pseudo_kxyz, generator)
            unstable_kxyz = adapted.logits(target.prepared, target.features).softmax(dim=0)
            pseudo_kxyz = boost(stable_kxyz, unstable_kxyz, pseudo_kxyz)
        return pseudo_kxyz.float()

    def learn(
        self,
        adapted: Segmenter,
        optimizer: torch.optim.Optimizer,
        target: Target,
        pseudo_kxyz: Tensor,
        generator: np.random.Generator,
    ) -> None:
        """Takes one round's steps on KL(Q || p_U), the mean over the voxels of one random crop each."""
        for _ in range(self.steps):
            box = draw_crop(target.prepared.unit, adapted.spec.crop, generator)
            if box is None:
                return
            log_p = adapted.network(adapted.window_input(target.prepared, target.features, box)).log_softmax(dim=1)
            q_1kxyz = pseudo_kxyz[:, *box].float()[None].to(log_p.device)
            loss = nnf.kl_div(log_p, q_1kxyz, reduction="none").sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _trained(self, adapted: Segmenter) -> list[torch.nn.Parameter]:
        if self.parameters == "bn":
            if parameters := affine_parameters(adapted.network):
                return parameters
            raise ConfigError(
                f"sfb: parameters = 'bn', and segmenter '{adapted.spec.name}' has no BatchNorm layer; set it to all"
            )
        return [parameter for parameter in adapted.network.parameters() if parameter.requires_grad]
