"""A network in training: what one optimisation step needs and changes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dropgen.config import Training
from dropgen.features.studies.labelling import Labelling
from dropgen.platform.methods import Method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.method import Criterion
from dropgen.platform.training.losses import PLAIN, build_loss


@dataclass
class Learner:
    """One network with its optimizer, learning-rate schedule and loss; the training loop and the benchmark share it.

    Attributes:
        network: Moved to the device at once; its parameters are what the optimizer changes.
        method: Computes the loss.
        training: Learning rate, weight decay, loss, and the steps that the schedule runs over.
        device: "cpu", "cuda" or "cuda:<index>".
        labelling: What label values mean.
    """

    network: nn.Module
    method: Method
    training: Training
    device: str
    labelling: Labelling = PLAIN
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    criterion: Criterion = field(init=False)

    def __post_init__(self) -> None:
        parameters = self.network.to(self.device).parameters()
        training = self.training
        self.optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=training.steps)
        self.criterion = build_loss(training.loss, self.labelling)

    def step(self, wrapped: nn.Module, batch: Batch) -> Tensor:
        """One optimisation step.

        A batch of images without any contrast changes nothing but by weight decay and momentum: every batch norm would
        multiply its gradient by 1 / sqrt(1e-5) = 316, which overflows float32 from three downsamplings on.

        Args:
            wrapped: The network as `Workers.wrap` gives it.
            batch: On the device.

        Returns:
            The loss, a scalar on the device, without gradient; reading it makes the host wait for the device.
        """
        self.network.train()
        torch.manual_seed(batch.seed)  # so that resuming needs the step alone, whatever layers draw
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss = self.method.loss(wrapped, batch, self.criterion)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * _varies(batch.image_bcxyz)).backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()


def _varies(image_bcxyz: Tensor) -> Tensor:
    """Whether any channel has two values, bool scalar on the device, so that the host need not wait for it."""
    return (image_bcxyz != image_bcxyz[:1, :, :1, :1, :1]).any()
