"""clDice, for vessels: whether the centrelines of two masks run inside each other."""

from __future__ import annotations

import math

import numpy as np
from skimage.morphology import skeletonize

from dropgen.platform.evaluation.surface import box_of


def centreline_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Shit et al., clDice: a novel topology-preserving loss function for tubular structure segmentation, CVPR 2021.

    The harmonic mean of the share of the prediction's centreline inside the truth and of the truth's inside the
    prediction; centrelines by Lee's thinning, which has a 3D form.

    Args:
        prediction: Boolean, `[X, Y, Z]`.
        truth: Boolean, on the same grid.

    Returns:
        0..1; 0 where nothing is predicted, NaN where the truth is empty.
    """
    box = box_of(prediction | truth)
    if box is None or not truth.any():
        return math.nan
    ours, theirs = prediction[box], truth[box]
    precision, sensitivity = _share_inside(ours, theirs), _share_inside(theirs, ours)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _share_inside(mask: np.ndarray, other: np.ndarray) -> float:
    centreline = skeletonize(mask, method="lee") > 0
    length = np.count_nonzero(centreline)
    return np.count_nonzero(centreline & other) / length if length else 0.0
