"""Weights and volumes given by formulas, shared with the reference network's golden values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def set_formula_weights(network: nn.Module) -> None:
    """Fills every entry of the state dict from its position k and element index i: sin(.7371 i + .31 (k+1))."""
    state = network.state_dict()
    for k, (key, entry) in enumerate(state.items()):
        if not entry.is_floating_point():
            continue
        values = torch.sin(0.7371 * torch.arange(entry.numel(), dtype=torch.float64) + 0.31 * (k + 1))
        if entry.ndim == 5:
            values = values * (2 / (entry.shape[1] * 27)) ** 0.5
        elif key.endswith("running_var"):
            values = 1 + 0.5 * values
        elif key.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values = 0.1 * values
        entry.copy_(values.view(entry.shape))


def formula_volume(batch: int, size: int, phase: float) -> Tensor:
    """A batch of cubes `[B, 1, s, s, s]`, each min-max scaled to [0, 1] in float64, then float32."""
    d, h, w = np.meshgrid(*[np.arange(size, dtype=np.float64)] * 3, indexing="ij")
    cubes = []
    for i in range(batch):
        u = np.sin(0.21 * d + 0.5 * i + phase) + np.cos(0.17 * h - 0.3 * i) + np.sin(0.13 * w + 0.05 * d + phase)
        cubes.append((u - u.min()) / (u.max() - u.min()))
    return torch.from_numpy(np.stack(cubes)[:, None]).float()
