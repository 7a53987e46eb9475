"""Per-layer dropout: whole channels dropped after every hidden layer instead of at the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dropgen.platform.methods.checks import require_choice, require_number, require_unet
from dropgen.platform.methods.joint import Joint
from dropgen.platform.methods.method import MakePredictor


@dataclass(frozen=True)
class LayerDropout(Joint):
    """The input u = [x; r] of DropGen with p = 0, and `Dropout3d(p)` after the ReLU of every hidden block.

    Asks whether it is dropout as such that helps, or dropout where image and stable features meet. Skip connections
    carry the dropped channels too; the logits are never dropped.

    Attributes:
        p: Probability that a channel is dropped, in [0, 1).
        include_input: Whether the channels of u are dropped as well.
    """

    p: float = 0.5
    include_input: bool = False

    kind: ClassVar[str] = "ablation"
    name: ClassVar[str] = "layer_dropout"
    acts_on: ClassVar[str] = "layers"
    needs_unet: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = (
        "the DropGen paper's ablation; Dropout3d: Tompson et al., Efficient Object Localization Using Convolutional "
        "Networks, CVPR 2015"
    )

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1)")
        require_choice(self.name, "include_input", self.include_input, (False, True))

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The UNet with dropout inside.

        Raises:
            ConfigError: The predictor is no flat UNet.
        """
        unet = require_unet(self.name, predictor(self.in_channels(feature_channels, image_channels)))
        for index, module in enumerate(unet.model):
            if isinstance(module, nn.ReLU):
                unet.model[index] = nn.Sequential(module, nn.Dropout3d(self.p))
        if self.include_input:
            unet.model[0] = nn.Sequential(nn.Dropout3d(self.p), unet.model[0])
        return unet
