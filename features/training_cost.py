"""What a training step of the flat UNet takes: memory without computing anything, seconds from a few small steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dropgen.features.unet import UNet

OPTIMISER_COPIES = 4  # of every weight: itself, its gradient and the two moments of AdamW
FLOAT = 4
MEASURED_EDGE = 64  # voxels; a larger crop is timed on a smaller one, which takes a moment
MEASURED_STEPS = 3


@dataclass(frozen=True)
class Predictor:
    """The flat UNet in training.

    Attributes:
        in_channels: The image's and the features'.
        classes: Background included.
        batch: Crops in a step.
    """

    in_channels: int
    classes: int
    base: int
    downs: int
    convs: int
    batch: int

    def build(self) -> UNet:
        """With new weights, on the device of the context."""
        return UNet(self.in_channels, self.classes, self.base, self.downs, self.convs)


def step_bytes(predictor: Predictor, crop: tuple[int, int, int]) -> int:
    """Memory of one step: what the backward pass needs of the forward pass, its widest gradients, and the optimiser.

    The network runs on tensors without data, so that any crop can be asked for.
    """
    with torch.device("meta"):
        network = predictor.build().train()
        batch = torch.empty(predictor.batch, predictor.in_channels, *crop)
    weights = {StorageWeakRef(weight.untyped_storage()).cdata for weight in network.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no storage of a freed one is taken for another

    def keep(tensor: Tensor) -> Tensor:
        kept[StorageWeakRef(tensor.untyped_storage()).cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(batch)
    sizes = [tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in weights]
    optimiser = OPTIMISER_COPIES * FLOAT * sum(weight.numel() for weight in network.parameters())
    return sum(sizes) + 2 * max(sizes) + optimiser


def step_seconds(predictor: Predictor, crop: tuple[int, int, int], device: str) -> float:
    """Seconds of one step, forward, backward and update, measured on random voxels.

    A crop longer than 64 voxels is timed on a smaller one and the time multiplied by the voxels.
    """
    factor = 2**predictor.downs
    edge = max(2 * factor, MEASURED_EDGE // factor * factor)
    small = [min(size, edge) for size in crop]
    network = predictor.build().to(device).train()
    optimiser = torch.optim.AdamW(network.parameters())
    image = torch.rand(predictor.batch, predictor.in_channels, *small, device=device)
    label = torch.zeros(predictor.batch, *small, dtype=torch.long, device=device)
    seconds = []
    for _ in range(1 + MEASURED_STEPS):
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(network(image), label)
        loss.backward()
        optimiser.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:]) * float(math.prod(crop) / math.prod(small))
