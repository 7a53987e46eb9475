"""The group of processes that train one network together; one process is a group of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


def _alone(value: Any) -> list[Any]:
    return [value]


def _unwrapped(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Workers:
    """Rank, size and what the ranks do together.

    Attributes:
        gather: Collects one picklable value from every rank, on every rank.
        wrap: Makes the network average its gradients over the ranks.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = field(default=_alone)
    wrap: Callable[[nn.Module], nn.Module] = field(default=_unwrapped)
