"""What nnU-Net prints while it trains, read from its log."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import fmean

LINE = re.compile(
    r": (?:Epoch (?P<number>\d+)|train_loss (?P<loss>\S+)|Pseudo dice \[(?P<dice>.*)\]|(?P<best>Yayy! New best EMA)|"
    r"Epoch time: (?P<seconds>\S+) s)"
)
DECIMAL = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")  # NumPy writes np.float32(0.5): its 32 has no point


@dataclass
class Epoch:
    """One epoch of 250 iterations.

    Attributes:
        number: From 0.
        loss: Mean training loss.
        dice: Mean over classes of the Dice of random validation patches, 0..1; NaN where they held no class.
        best: Whether its weights became `checkpoint_best.pth`.
        seconds: NaN until the epoch has ended.
    """

    number: int
    loss: float = math.nan
    dice: float = math.nan
    best: bool = False
    seconds: float = math.nan


def read_epochs(log: str) -> list[Epoch]:
    """The finished epochs in order; one that was trained again after an interruption counts as it was last."""
    epochs: dict[int, Epoch] = {}
    current = Epoch(-1)
    whole_lines = log[: log.rfind("\n") + 1]  # the last one may be half written
    for match in LINE.finditer(whole_lines):
        number, loss, dice, best, seconds = match.groups()
        if number is not None:
            current = epochs[int(number)] = Epoch(int(number))
        elif loss is not None:
            current.loss = float(loss)
        elif dice is not None:
            known = [float(value) for value in DECIMAL.findall(dice)]
            current.dice = fmean(known) if known else math.nan
        elif seconds is not None:
            current.seconds = float(seconds)
        elif best is not None:
            current.best = True
    return [epochs[number] for number in sorted(epochs) if math.isfinite(epochs[number].seconds)]
