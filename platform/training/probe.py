"""What a trial measures of its own network while it trains, on one fixed batch that it does not train on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.config import LEAVE_ONE_OUT
from dropgen.features.extractors import instance_norm
from dropgen.features.studies.prepare import network_scale
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluation.analyses.condition1 import gradient_agreement
from dropgen.platform.methods import Criterion, Method
from dropgen.platform.methods.joint import Joint
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.losses import build_loss

EVERY = 100  # steps, of long trainings
LEAST = 20  # probes of a short one
ANALYSIS = "condition1"


@dataclass(frozen=True)
class Probe:
    """Condition 1 on the middle crops of a few validation cases.

    Attributes:
        image_bmxyz: As the network sees it.
        features_bcxyz: Instance-normalised.
        label_b1xyz: Class indices.
        every: Steps from one probe to the next.
    """

    image_bmxyz: Tensor
    features_bcxyz: Tensor
    label_b1xyz: Tensor
    criterion: Criterion
    every: int

    def due(self, step: int) -> bool:
        """Whether this step is followed by a probe; the first one is."""
        return step == 1 or step % self.every == 0

    def __call__(self, network: nn.Module) -> tuple[float | None, float]:
        """The cosine, None where a gradient vanishes, and the inner product; the network is left as it was."""
        found = gradient_agreement(network, self.image_bmxyz, self.features_bcxyz, self.label_b1xyz, self.criterion)
        return (found.cosine if math.isfinite(found.cosine) else None), found.inner


def probe_of(bench: Workbench, method: Method, device: str) -> Probe | None:
    """The probe of an experiment that asks for condition 1, for a method that is given image and features; else None.

    Args:
        bench: On the trial's device.
        method: Of the trial.
        device: Where the network is.
    """
    experiment = bench.experiment
    if not {"all", ANALYSIS} & set(experiment.analyses) or not isinstance(method, Joint):
        return None
    if experiment.selection.rule == LEAVE_ONE_OUT:  # the final network trains on every case that chose it
        return None
    images: list[Tensor] = []
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for case in validation_cases(bench.study, experiment.selection.rule)[: experiment.training.batch]:
        prepared, stored, label = bench.stored(case, method)
        x, y, z = (
            slice((have - want) // 2, (have - want) // 2 + want)
            for have, want in zip(prepared.shape, bench.study.crop, strict=True)
        )
        unit = torch.from_numpy(np.array(prepared.unit[:, x, y, z]))[None].to(device)
        if stored is None:
            assert bench.extractor is not None
            raw = bench.extractor(unit)
        else:
            raw = torch.from_numpy(np.array(stored[:, x, y, z]))[None].to(device)
        images.append(network_scale(unit, [prepared]))
        features.append(instance_norm(raw))
        labels.append(torch.from_numpy(label[x, y, z].astype(np.int64))[None, None].to(device))
    training = experiment.training
    every = max(1, min(EVERY, training.steps // LEAST))
    return Probe(
        torch.cat(images),
        torch.cat(features),
        torch.cat(labels),
        build_loss(training.loss, bench.study.labelling),
        every,
    )
