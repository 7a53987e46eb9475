"""ERM: empirical risk minimisation on the image alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dropgen.platform.methods.method import Method


@dataclass(frozen=True)
class Erm(Method):
    """The baseline every other method is compared with: input x, nothing else."""

    name: ClassVar[str] = "erm"
    acts_on: ClassVar[str] = "nothing"
    source: ClassVar[str] = "Vapnik, The Nature of Statistical Learning Theory, 1995"
