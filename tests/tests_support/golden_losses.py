"""Prints the twenty losses of a golden curve, as JSON: `python -m tests_support.golden_losses CURVE FOLDER`.

A process of its own, because oneDNN reads ONEDNN_MAX_CPU_ISA once, before its first convolution.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dropgen.features.extractors import instance_norm
from dropgen.features.extractors.anatomix import Anatomix
from dropgen.features.unet import UNet
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.erm import Erm
from dropgen.platform.training.losses import dice_ce
from tests_support.formulas import formula_volume, set_formula_weights

STEPS = 20
METHODS = {"erm": Erm(), "dropgen_p0_tap59": DropGen(p=0)}


def losses(curve: str, folder: Path) -> list[float]:
    """The losses of the reference's training, made again; the formula anatomix is written into the folder."""
    method = METHODS[curve]
    extractor = None
    if method.needs_features:
        weights = UNet(1, 16, base=16, downs=4)
        set_formula_weights(weights)
        torch.save(weights.state_dict(), folder / "anatomix.pth")
        extractor = Anatomix(str(folder / "anatomix.pth"))
    network = UNet(method.in_channels(16), 4, base=4, downs=3).train()  # the plain memory layout, as the reference
    set_formula_weights(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    criterion = dice_ce()
    found = []
    for step in range(STEPS):
        image = formula_volume(2, 32, 0.1 * step)
        features = instance_norm(extractor(image)) if extractor else None
        kept = torch.ones(2, method.in_channels(16), dtype=torch.bool)
        loss = method.loss(network, Batch(image, (3.999 * image).long(), features, kept), criterion)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        found.append(loss.item())
    return found


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.stdout.write(json.dumps(losses(sys.argv[1], Path(sys.argv[2]))))
