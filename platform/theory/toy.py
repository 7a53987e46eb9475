"""The smallest world of the propositions: two classes, a stable feature, an image that an environment can invert."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from dropgen.errors import ConfigError

TRAINING, NOISE, FLIPPED = 1.0, 0.0, -1.0
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(128)


class Weights(NamedTuple):
    """A linear predictor: the logit of Y = 1 against Y = -1 is image * U + stable * S."""

    image: float
    stable: float


class Sample(NamedTuple):
    """Independent draws in arrays of one shape; the label is 0 for Y = -1 and 1 for Y = 1."""

    label: np.ndarray
    image: np.ndarray
    stable: np.ndarray


@dataclass(frozen=True)
class Toy:
    """A fair coin Y = -1 or 1 that a stable feature S and the image U_e of environment e in [-1, 1] tell about.

    S = stable_mean * Y + a and U_e = e * (image_mean * Y + b) + sqrt(1 - e^2) * c. The noises a, b and c are standard
    normal, and c is independent of all else. a and b correlate by stable_mean / image_mean: then Y given U_1 does not
    depend on S, as it must not where S is computed from the image. Training sees e = 1, the contrast is inverted at
    -1, and at 0 the image is noise.

    The assumptions of the propositions hold: Y given S is the same in every environment (1), Y given U_e is not (2),
    U_e tells what S does not unless e = 0 (3), and S tells something (4).

    Attributes:
        stable_mean: How far S separates the classes, above 0.
        image_mean: The same for U_1, above `stable_mean`.

    Raises:
        ConfigError: The means are not in that order.
    """

    stable_mean: float = 1.0
    image_mean: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.stable_mean < self.image_mean:
            raise ConfigError(
                f"the toy needs 0 < stable_mean < image_mean, not stable_mean = {self.stable_mean} and image_mean = "
                f"{self.image_mean}: an image from which S is computed tells at least as much as S"
            )

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...], environment: float = TRAINING) -> Sample:
        """Independent draws of Y, U and S in one environment."""
        shared = self.stable_mean / self.image_mean
        label = generator.integers(2, size=shape)
        own, b, c = generator.standard_normal((3, *shape))
        a = shared * b + math.sqrt(1 - shared**2) * own
        y = 2.0 * label - 1
        stable = self.stable_mean * y + a
        image = environment * (self.image_mean * y + b) + math.sqrt(1 - environment**2) * c
        return Sample(label, image, stable)

    def risk(self, predictor: Weights, environment: float) -> float:
        """Expected cross-entropy in nats, by quadrature over the margin, which is normal."""
        mean, spread = self._margin(predictor, environment)
        return float(NODE_WEIGHTS @ np.logaddexp(0, -(mean + spread * NODES)) / NODE_WEIGHTS.sum())

    def error(self, predictor: Weights, environment: float) -> float:
        """Share of cases whose likelier class is the wrong one; a predictor that never decides has 1/2."""
        mean, spread = self._margin(predictor, environment)
        return float(ndtr(-mean / spread)) if spread > 0 else 0.5

    def masked_risk(self, predictor: Weights, p: float) -> float:
        """Risk in the training environment under group masks: (1 - p) joint + p/2 image only + p/2 stable only."""
        joint, image, stable = (self.risk(masked, TRAINING) for masked in group_masks(predictor))
        return (1 - p) * joint + p / 2 * image + p / 2 * stable

    def best_joint(self, environment: float) -> Weights:
        """The Bayes predictor from U and S in one environment: 2 Sigma^-1 mu for normals of equal covariance."""
        image_mean, shared = environment * self.image_mean, environment * self.stable_mean / self.image_mean
        image, stable = image_mean - shared * self.stable_mean, self.stable_mean - shared * image_mean
        return Weights(2 * image / (1 - shared**2), 2 * stable / (1 - shared**2))

    @property
    def best_stable(self) -> Weights:
        """The Bayes predictor from S alone, the same in every environment; its risk is H(Y|S)."""
        return Weights(0.0, 2 * self.stable_mean)

    @property
    def best_image(self) -> Weights:
        """The Bayes predictor from U alone in the training environment."""
        return Weights(2 * self.image_mean, 0.0)

    def _margin(self, predictor: Weights, environment: float) -> tuple[float, float]:
        """Mean and standard deviation of Y * logit: positive where the likelier class is the right one."""
        image, stable = predictor
        mean = image * environment * self.image_mean + stable * self.stable_mean
        shared = environment * self.stable_mean / self.image_mean
        return mean, math.sqrt(max(0.0, image**2 + stable**2 + 2 * shared * image * stable))


def group_masks(predictor: Weights) -> tuple[Weights, Weights, Weights]:
    """What a linear predictor is under the masks joint, image only and stable only."""
    return predictor, predictor._replace(stable=0.0), predictor._replace(image=0.0)
