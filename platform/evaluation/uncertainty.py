"""How sure a segmenter is of one volume: entropy, and whether image and features alone would say the same.

DropGen trained its network on inputs with channels missing, so that it can be asked without the image and without the
features: where the two answers differ, one of them does not hold in this domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.features.studies.prepare import Native, Prepared
from dropgen.platform.adaptation.tent import entropy
from dropgen.platform.evaluation.inference import Slab, labels, native_mask
from dropgen.platform.methods.joint import Joint
from dropgen.platform.segmenter import Segmenter

MAPS = 4  # uint8 volumes that are held beside the mask: entropy, two masks of parts of the input, where they differ


@dataclass(frozen=True)
class Uncertainty:
    """Of one mask.

    Attributes:
        entropy: Mean over the mask's foreground, of the most that there can be, 0 to 1; None without foreground.
        disagreement: Share of the voxels that the image alone or the features alone call foreground on which the two
            differ, 0 to 1; None where neither finds any, or the method was not trained on both.
        entropy_map: uint8 `[X, Y, Z]` on the native grid, percent of ln K.
        disagreement_map: uint8, 1 where the two differ; None where `disagreement` cannot be asked.
    """

    entropy: float | None
    disagreement: float | None
    entropy_map: np.ndarray
    disagreement_map: np.ndarray | None


def extra_passes(segmenter: Segmenter) -> int:
    """Passes over a volume's windows that its uncertainty costs beside the one that makes the mask."""
    return 2 if isinstance(segmenter.method, Joint) else 0


def predict_asked(segmenter: Segmenter, prepared: Prepared, uncertain: bool) -> tuple[np.ndarray, Uncertainty | None]:
    """The mask of `predict_native`, and how sure it is where that is asked."""
    return predict_uncertain(segmenter, prepared) if uncertain else (segmenter.predict_native(prepared), None)


def predict_uncertain(segmenter: Segmenter, prepared: Prepared) -> tuple[np.ndarray, Uncertainty]:
    """The mask that `predict_native` gives, and how sure it is.

    Args:
        segmenter: A plain one; scores of a test-time method are not the logits of one network.
        prepared: As for `predict_native`.
    """
    features = segmenter.features(prepared)
    order = segmenter.spec.labelling.order

    def both(slabs: Iterable[Slab]) -> tuple[np.ndarray, np.ndarray]:
        mask, unsure = Native(prepared.grid), Native(prepared.grid)
        for slab in slabs:
            mask.put(slab.axis, slab.start, labels(slab, order))
            unsure.put(slab.axis, slab.start, _percent(slab, bool(order)))
        return mask.array, unsure.array

    mask_xyz, entropy_map = segmenter.over_slabs(prepared, features, both)
    foreground = mask_xyz > 0
    mean = float(entropy_map[foreground].mean()) / 100 if foreground.any() else None
    if not extra_passes(segmenter):
        return mask_xyz, Uncertainty(mean, None, entropy_map, None)
    images = len(prepared.unit)
    of_image, of_features = (
        segmenter.around(_Without(segmenter.network, dropped)).over_slabs(
            prepared, features, lambda slabs: native_mask(slabs, prepared.grid, order)
        )
        for dropped in (slice(images, None), slice(0, images))
    )
    differ = of_image != of_features
    either = np.count_nonzero((of_image > 0) | (of_features > 0))
    share = float(np.count_nonzero(differ) / either) if either else None
    return mask_xyz, Uncertainty(mean, share, entropy_map, differ.view(np.uint8))


class _Without(nn.Module):
    """A network whose input lacks some channels, as it did in training."""

    def __init__(self, network: nn.Module, dropped: slice) -> None:
        super().__init__()
        self.network, self.dropped = network, dropped

    def forward(self, u_bcxyz: Tensor) -> Tensor:
        """Logits of what is left."""
        u_bcxyz = u_bcxyz.clone()
        u_bcxyz[:, self.dropped] = 0
        logits_bkxyz: Tensor = self.network(u_bcxyz)
        return logits_bkxyz


def _percent(slab: Slab, regions: bool) -> np.ndarray:
    """Entropy of a slab's softmax in percent of ln K, uint8 `[x, y, z]`, a plane at a time to take little memory.

    With regions it is the greatest among them of yes or no, in percent of ln 2.
    """
    if regions:
        of_each = [entropy(torch.stack((z_xyz, torch.zeros_like(z_xyz)))[None])[0] for z_xyz in slab.logits_kxyz]
        most_xyz = torch.stack(of_each).amax(dim=0)
        return most_xyz.mul_(100 / math.log(2)).round_().clamp_(0, 100).to(torch.uint8).numpy()
    planes = [entropy(plane_kxy[None])[0] for plane_kxy in slab.logits_kxyz.unbind(dim=1 + slab.axis)]
    most = math.log(len(slab.logits_kxyz))
    percent = torch.stack(planes, dim=slab.axis).mul_(100 / most).round_().clamp_(0, 100)
    return percent.to(torch.uint8).numpy()
