"""Linear CKA: how alike two representations of the same places are (Kornblith et al., ICML 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 65536  # rows that are in float64 at a time


def linear_cka(x_nc: Tensor, y_nd: Tensor, chunk: int = CHUNK) -> float:
    """||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred, in float64 from small matrices alone.

    It is 1 where the two differ by a rotation, one scale for all columns and shifts, and goes to 0 for independent
    ones as n grows beyond C. It changes with the scale of single columns: compare features after the instance norm, as
    the network sees them.

    Args:
        x_nc: One representation, `[n, C]`: a row per place.
        y_nd: The other at the same places, `[n, D]`.
        chunk: Rows per step of the sums; changes the result by rounding only.

    Returns:
        0..1; NaN where a representation is the same everywhere.
    """
    rows = [slice(start, start + chunk) for start in range(0, len(x_nc), chunk)]
    centre_x, centre_y = _mean(x_nc, rows), _mean(y_nd, rows)
    xx, yy, yx = (
        torch.zeros(tall.shape[1], wide.shape[1], dtype=torch.float64, device=x_nc.device)
        for tall, wide in ((x_nc, x_nc), (y_nd, y_nd), (y_nd, x_nc))
    )
    for row in rows:
        x, y = x_nc[row].double() - centre_x, y_nd[row].double() - centre_y
        xx += x.T @ x
        yy += y.T @ y
        yx += y.T @ x
    norms = float(xx.norm() * yy.norm())
    return float(yx.square().sum()) / norms if norms > 0 else math.nan


def _mean(part_nc: Tensor, rows: Sequence[slice]) -> Tensor:
    total = torch.zeros(part_nc.shape[1], dtype=torch.float64, device=part_nc.device)
    for row in rows:
        total += part_nc[row].double().sum(0)
    return total / max(len(part_nc), 1)
