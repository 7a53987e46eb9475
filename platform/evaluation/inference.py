"""Sliding windows over one prepared volume.

Features reach a window by one of two ways, stated by the bundle's `feature_scope`. "volume": the
extractor saw the whole volume and the window cuts its raw features out, as the feature store does for
training crops. "window": the extractor sees only the window, as it saw only the crop in online training.
Either way the instance norm is the network input's own first step, so its statistics are the window's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from dropgen.features.extractors import Extractor, instance_norm
from dropgen.features.studies.prepare import Prepared
from dropgen.platform.methods import Method

WINDOWS_AT_ONCE = 4


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    method: Method,
    prepared: Prepared,
    features_cxyz: np.ndarray | None,
    window_extractor: Extractor | None,
    *,
    crop: tuple[int, int, int],
    overlap: float,
    device: str,
) -> Tensor:
    """Logits of a whole volume, averaged where windows overlap.

    Args:
        network: In eval mode.
        method: Builds the network's input from image and features, and has the last word on the whole.
        prepared: At least `crop` voxels along every axis.
        features_cxyz: Raw features of the whole volume, or None.
        window_extractor: Extracts features in each window instead; None when they are given or not needed.
        crop: Window size in voxels.
        overlap: Fraction of a window that the next one repeats.
        device: Where the network is.

    Returns:
        `[K, X, Y, Z]` float32 on the prepared grid.
    """
    whole_1cxyz = side_by_side(prepared.unit, features_cxyz)

    def over_windows(predict: Callable[[Tensor], Tensor]) -> Tensor:
        def window_logits(window_bcxyz: Tensor) -> Tensor:
            return predict(window_input(method, prepared, window_bcxyz, window_extractor)).float()

        blended = sliding_window_inference(
            whole_1cxyz, crop, WINDOWS_AT_ONCE, window_logits, overlap, mode="constant", sw_device=device, device="cpu"
        )
        assert isinstance(blended, Tensor)
        return blended[0]

    return method.predict(network, over_windows)


def side_by_side(unit_xyz: np.ndarray, features_cxyz: np.ndarray | None) -> Tensor:
    """Unit-scale image and raw features of the same voxels as `[1, 1 + C, X, Y, Z]` float32."""
    channels = [unit_xyz[None]] if features_cxyz is None else [unit_xyz[None], features_cxyz]
    return torch.from_numpy(np.concatenate(channels, axis=0, dtype=np.float32))[None]


def window_input(
    method: Method, prepared: Prepared, window_bcxyz: Tensor, window_extractor: Extractor | None
) -> Tensor:
    """The network's input for windows cut out of `side_by_side`, `[B, in_channels, X, Y, Z]`.

    Args:
        method: Builds the input from image and features.
        prepared: Where the windows come from; gives the image's shift and scale.
        window_bcxyz: Unit scale, with raw features unless they are extracted here.
        window_extractor: Extracts features in each window; None when they are there or not needed.
    """
    unit_b1xyz, raw_bcxyz = window_bcxyz[:, :1], window_bcxyz[:, 1:]
    if window_extractor is not None:
        raw_bcxyz = window_extractor(unit_b1xyz)
    image_b1xyz = (unit_b1xyz - prepared.shift) / prepared.scale
    return method.inputs(image_b1xyz, instance_norm(raw_bcxyz) if method.needs_features else None)
