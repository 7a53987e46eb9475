"""The first convolution of the flat UNet without the channels that a whole batch dropped."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dropgen.features.unet import UNet


def predict(network: nn.Module, u_bcxyz: Tensor, kept_bc: Tensor) -> Tensor:
    """Logits from an input whose dropped channels are zero; a flat UNet never reads those that no sample keeps.

    Args:
        network: The predictor, as a method's `network` built it or as several workers wrap it.
        u_bcxyz: Input after dropout.
        kept_bc: bool `[B, C]`, the channels that are left.
    """
    unwrapped = getattr(network, "module", network)
    logits: Tensor = network(u_bcxyz, call=over_survivors(kept_bc)) if isinstance(unwrapped, UNet) else network(u_bcxyz)
    return logits


def over_survivors(kept_bc: Tensor) -> Callable[[int, nn.Module, Tensor], Tensor]:
    """What `UNet.forward` takes as `call`: module 0 reads only channels that some sample of the batch keeps.

    A dropped channel is zero, adds nothing to the convolution and leaves no gradient in its slice of the weight, so
    the result is that of the whole convolution up to the order of its sums. It is the one layer whose cost grows with
    the extractor's channels. One convolution for the batch, not one per sample: PyTorch computes a float32
    convolution of a single sample with few channels without oneDNN, 4 times slower (3 channels of 64^3, 2.13).

    Args:
        kept_bc: bool `[B, C]`, for the C input channels.
    """
    kept_c = kept_bc.any(dim=0).nonzero().flatten()

    def call(index: int, module: nn.Module, x_bcxyz: Tensor) -> Tensor:
        if index == 0 and 0 < len(kept_c) < kept_bc.shape[1]:
            assert isinstance(module, nn.Conv3d)
            return _convolve(module, x_bcxyz, kept_c)
        result: Tensor = module(x_bcxyz)
        return result

    return call


def _convolve(module: nn.Conv3d, x_bcxyz: Tensor, kept_c: Tensor) -> Tensor:
    weight = module.weight.index_select(1, kept_c)
    if module.weight.is_contiguous(memory_format=torch.channels_last_3d):  # the layers behind want this layout
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    assert not isinstance(module.padding, str)
    padding = [amount for amount in reversed(module.padding) for _ in range(2)]
    return nnf.conv3d(nnf.pad(x_bcxyz.index_select(1, kept_c), padding, mode=module.padding_mode), weight)
