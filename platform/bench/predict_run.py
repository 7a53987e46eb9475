"""What one process of `dropgen bench predict` does: load a model, predict one volume, say what it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from dropgen.errors import ResourceError
from dropgen.features.extractors.anatomix import Anatomix
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import Volume, read_volume
from dropgen.platform.evaluation.inference import WINDOWS_AT_ONCE
from dropgen.platform.segmenter import Segmenter

SLABS, PLAIN = "slabs", "whole logits"
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Run:
    """One prediction, from the file to the mask on its grid.

    Attributes:
        seconds: Of all of it, the model loaded.
        loaded: Resident bytes with the model loaded and nothing read.
        peak: The most resident bytes of the process.
        network_s: Seconds in the network; 0 where that was not asked.
        extractor_s: Likewise in the extractor.
        extractor_calls: How often that was called.
    """

    seconds: float
    loaded: int
    peak: int
    network_s: float = 0.0
    extractor_s: float = 0.0
    extractor_calls: int = 0


def by_slabs(segmenter: Segmenter, volume: Volume) -> np.ndarray:
    """What every user of a Segmenter gets."""
    return segmenter.predict(volume)


def by_whole_logits(segmenter: Segmenter, volume: Volume) -> np.ndarray:
    """The plain path: logits of all classes and voxels, then their argmax, then the native grid."""
    prepared = prepare([volume], segmenter.spec.preparation)
    mask = segmenter.logits(prepared).argmax(dim=0).to(torch.uint8).numpy()
    return prepared.grid.restore(mask)


def by_monai(segmenter: Segmenter, volume: Volume) -> np.ndarray:
    """MONAI's inferer, which stitches for itself, on the same prepared image; it knows the image alone."""
    prepared = prepare([volume], segmenter.spec.preparation)
    inferer = SlidingWindowInferer(segmenter.spec.crop, WINDOWS_AT_ONCE, segmenter.spec.overlap, mode="constant")
    with torch.no_grad():
        logits = inferer(torch.from_numpy(prepared.unit)[None], segmenter.network)
    assert isinstance(logits, torch.Tensor)
    return prepared.grid.restore(logits[0].argmax(dim=0).to(torch.uint8).numpy())


PEERS: dict[str, Callable[[Segmenter, Volume], np.ndarray]] = {
    SLABS: by_slabs, PLAIN: by_whole_logits, "MONAI": by_monai,
}  # fmt: skip


def run_peer(peer: str, bundle: Path, volume: Path, mask: Path) -> Run:
    """One run of the memory part.

    Args:
        peer: One of `PEERS`.
        bundle: The model.
        volume: The NIfTI file.
        mask: Where the mask goes, as .npy.
    """
    return _measured(Segmenter.load(bundle), PEERS[peer], volume, mask)


def run_features(bundle: Path, volume: Path, mask: Path) -> Run:
    """One run of the features part; arguments as for `run_peer`."""
    segmenter = Segmenter.load(bundle)
    extractor = segmenter._extractor
    assert isinstance(extractor, Anatomix)
    network, features = _Clock(segmenter.network), _Clock(extractor.module)
    run = _measured(segmenter, by_slabs, volume, mask)
    return Run(run.seconds, run.loaded, run.peak, network.seconds, features.seconds, features.calls)


def _measured(
    segmenter: Segmenter, predict: Callable[[Segmenter, Volume], np.ndarray], volume: Path, mask: Path
) -> Run:
    loaded = resident("VmRSS")
    began = time.perf_counter()
    found = predict(segmenter, read_volume(volume))
    seconds, peak = time.perf_counter() - began, resident("VmHWM")
    np.save(mask, found)
    return Run(seconds, loaded, peak)


class _Clock:
    """Adds up the seconds of a module's calls."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds, self.calls, self._began = 0.0, 0, 0.0
        module.register_forward_pre_hook(lambda *_: self._start())
        module.register_forward_hook(lambda *_: self._stop())

    def _start(self) -> None:
        self._began = time.perf_counter()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._began
        self.calls += 1


def resident(field: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at the most so far.

    Raises:
        ResourceError: The system is not Linux, which alone says so.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        raise ResourceError("peak memory is read from /proc/self/status; run bench predict on Linux") from None
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(value)
