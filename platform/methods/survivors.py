"""The network's input without the channels that a whole batch dropped: they are neither gathered nor convolved."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dropgen.features.unet import UNet


def predict(network: nn.Module, image_bmxyz: Tensor, features_bcxyz: Tensor, factor_bc: Tensor) -> Tensor:
    """Logits from u[b, c] factor[b, c], u = [x; r]; a flat UNet never reads channels whose factor is 0 for all samples.

    Such a channel is zero, adds nothing to the convolution and leaves no gradient in its slice of the weight, so the
    result is that of the whole convolution up to the order of its sums. It is the one layer whose cost grows with
    the extractor's channels.

    Args:
        network: The predictor, as a method's `network` built it or as several workers wrap it.
        image_bmxyz: The first channels of the network's input.
        features_bcxyz: The channels behind it.
        factor_bc: `[B, M + C]`, 0 where a sample dropped the channel.
    """
    kept_c = (factor_bc != 0).any(dim=0).nonzero().flatten()
    unwrapped = getattr(network, "module", network)
    if isinstance(unwrapped, UNet) and 0 < len(kept_c) < factor_bc.shape[1]:
        images = image_bmxyz.shape[1]
        of_image, of_features = kept_c[kept_c < images], kept_c[kept_c >= images] - images
        u = torch.cat((image_bmxyz[:, of_image], features_bcxyz[:, of_features]), dim=1)
        logits: Tensor = network(u * _spread(factor_bc[:, kept_c]), call=_over(kept_c))
    else:
        u = torch.cat((image_bmxyz, features_bcxyz), dim=1)
        logits = network(u * _spread(factor_bc))
    return logits


def _spread(factor_bc: Tensor) -> Tensor:
    return factor_bc[:, :, None, None, None]


def _over(kept_c: Tensor) -> Callable[[int, nn.Module, Tensor], Tensor]:
    """What `UNet.forward` takes as `call` where its input is these channels alone: module 0 convolves them.

    One convolution for the batch, not one per sample: PyTorch computes a float32 convolution of a single sample with
    few channels without oneDNN, 4 times slower (3 channels of 64^3, 2.13).
    """

    def call(index: int, module: nn.Module, x_bcxyz: Tensor) -> Tensor:
        result: Tensor = _convolve(module, x_bcxyz, kept_c) if index == 0 else module(x_bcxyz)
        return result

    return call


def _convolve(module: nn.Module, x_bcxyz: Tensor, kept_c: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv3d)
    assert not isinstance(module.padding, str)
    weight = module.weight.index_select(1, kept_c)
    if module.weight.is_contiguous(memory_format=torch.channels_last_3d):  # the layers behind want this layout
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    padding = [amount for amount in reversed(module.padding) for _ in range(2)]
    return nnf.conv3d(nnf.pad(x_bcxyz, padding, mode=module.padding_mode), weight)
