"""A network that nothing trains: what every extractor with weights holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Locked(nn.Module):
    """Stays in eval mode for good, whatever a parent module switches to; runs in float32 and without gradient.

    Args:
        network: Frozen in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Locked:
        """Ignores `mode`: batch statistics must never enter the frozen features."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x_bcxyz: Tensor, **options: Any) -> Tensor:
        """The network's output; `options` are its own."""
        with torch.autocast(x_bcxyz.device.type, enabled=False):
            output: Tensor = self.network(x_bcxyz.float(), **options)
            return output
