"""How far a difference between methods could be chance: subjects and seeds drawn again, many times at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Observations:
    """What all methods were scored on: one entry for every subject in every domain where it was seen.

    Attributes:
        subjects: `[O]` int, who it is.
        domains: `[O]` int, where.
    """

    subjects: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(cls, keys: Sequence[tuple[str, str]]) -> Self:
        """Numbers for the names of `(domain, subject)`."""
        domains, subjects = zip(*keys, strict=True)
        return cls(*(np.unique(names, return_inverse=True)[1] for names in (subjects, domains)))

    @property
    def weights(self) -> np.ndarray:
        """`[O]`, sum 1: a mean over domains of the mean over their subjects, as the table's unseen mean."""
        _, place, size = np.unique(self.domains, return_inverse=True, return_counts=True)
        return np.asarray(1 / (len(size) * size[place]))

    @property
    def fewest(self) -> int:
        """Subjects of the domain with the fewest; of a single one nothing can be drawn again, so it has no interval."""
        return int(np.unique(self.domains, return_counts=True)[1].min())

    def strata(self) -> list[np.ndarray]:
        """Subjects seen in the same domains, who can stand for each other: drawing among them empties no domain."""
        groups: dict[frozenset[int], list[int]] = {}
        for subject in np.unique(self.subjects):
            seen = frozenset(int(domain) for domain in self.domains[self.subjects == subject])
            groups.setdefault(seen, []).append(int(subject))
        return [np.array(members) for members in groups.values()]


def bootstrap(
    scores: Sequence[np.ndarray], seen: Observations, generator: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """Means of every method under resampling; the difference of two columns is paired by subject.

    A draw takes subjects with replacement, the same for all methods, and of every method as many of its seeds as it
    has, with replacement and on their own: what chance did to two trainings has only the number of the seed in common.

    Args:
        scores: For every method `[seeds, O]`, finite.
        seen: What the columns are.
        generator: Draws.
        draws: How often.

    Returns:
        `[draws, methods]`, weighted as `Observations.weights`.
    """
    people = int(seen.subjects.max()) + 1
    counts = np.zeros((draws, people))
    for members in seen.strata():
        size = len(members)
        counts[:, members] = generator.multinomial(size, np.full(size, 1 / size), size=draws)
    weights_do = counts[:, seen.subjects] * seen.weights
    means = np.empty((draws, len(scores)))
    for place, scores_so in enumerate(scores):
        seeds = len(scores_so)
        shares_ds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
        means[:, place] = np.einsum("ds,so,do->d", shares_ds, scores_so, weights_do, optimize=True)
    return means
