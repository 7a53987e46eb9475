"""Fine-tuning: the anatomix network itself is trained to segment, instead of a predictor on its features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from dropgen.features.extractors.anatomix import CHANNELS, architecture, find_weights, load_weights, require_text
from dropgen.platform.methods.method import MakePredictor, Method
from dropgen.platform.sizes import SizeRule


class HeadedExtractor(nn.Module):
    """anatomix's UNet to its last module, then a 1x1x1 convolution to class logits.

    Args:
        classes: K, background included.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.extractor = architecture()
        self.head = nn.Conv3d(CHANNELS, classes, 1)

    def forward(self, image_b1xyz: Tensor) -> Tensor:
        """Logits `[B, K, X, Y, Z]`."""
        logits: Tensor = self.head(self.extractor(image_b1xyz))
        return logits


class FrozenEncoder(HeadedExtractor):
    """The same with the encoder, bottleneck included, frozen: its weights and its batch statistics never change."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    @property
    def encoder(self) -> nn.ModuleList:
        """The modules up to the bottleneck's last, 0 to 36."""
        return self.extractor.model[: self.extractor.level_ends[-1] + 1]

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Switches decoder and head alone; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self


@dataclass(frozen=True)
class FinetuneScratch(Method):
    """The network that the other two fine-tune, from random weights: what pretraining is compared with."""

    kind: ClassVar[str] = "ablation"
    name: ClassVar[str] = "finetune_scratch"
    acts_on: ClassVar[str] = "layers"
    sizes: ClassVar[SizeRule] = SizeRule(16, 32, "anatomix's 4 downsamplings", "take the finetune methods out")
    one_channel: ClassVar[bool] = True  # the input of anatomix's first convolution
    source: ClassVar[str] = "anatomix's own segmentation recipe (Dey et al., ICLR 2025), untrained"

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """anatomix's UNet with a head; `network` of the experiment plays no part."""
        return HeadedExtractor(classes)


@dataclass(frozen=True)
class FinetuneExtractor(FinetuneScratch):
    """All of anatomix is trained further, from its public weights, with one learning rate.

    anatomix was trained on intensities in [0, 1]; a study whose rule gives others is refused.

    Attributes:
        weights: Path of anatomix.pth; without it the file is looked for in the folder that DROPGEN_WEIGHTS names.
        sha256: Expected hash of the file; compared only when given.
    """

    weights: str | None = None
    sha256: str | None = None

    name: ClassVar[str] = "finetune_extractor"
    unit_scale: ClassVar[bool] = True
    source: ClassVar[str] = "the DropGen paper's ablation; anatomix's own recipe (Dey et al., ICLR 2025)"

    def __post_init__(self) -> None:
        require_text(self.name, "weights", self.weights)
        require_text(self.name, "sha256", self.sha256)

    def pretrained(self) -> str:
        """The sha256 of anatomix.pth."""
        return self._find()[1]

    def initialise(self, network: nn.Module) -> None:
        """Loads anatomix.pth, every entry or none; the head stays random."""
        assert isinstance(network, HeadedExtractor)
        load_weights(network.extractor, self._find()[0])

    def _find(self) -> tuple[Path, str]:
        return find_weights(self.weights, self.sha256, f"the option weights of {self.name}")


@dataclass(frozen=True)
class FinetuneDecoder(FinetuneExtractor):
    """anatomix's decoder and the head are trained; its encoder stays as published."""

    name: ClassVar[str] = "finetune_decoder"

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """anatomix's UNet with a head, its modules 0 to 36 frozen."""
        return FrozenEncoder(classes)
