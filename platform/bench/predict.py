"""Times predictions of whole volumes and takes their peak memory, every contender in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dropgen.config import Network
from dropgen.errors import ConfigError, StoreError
from dropgen.features.bench.store import make_features
from dropgen.features.bench.timing import rounds
from dropgen.features.extractors.anatomix import ANATOMIX, architecture
from dropgen.features.studies.prepare import Grid
from dropgen.features.studies.volume import Volume, write_volume
from dropgen.platform import methods
from dropgen.platform.bench.predict_model import DROPGEN, anatomix_like, image_alone, with_mind
from dropgen.platform.bench.predict_run import PEERS, PLAIN, SLABS, Run, run_features, run_peer
from dropgen.platform.evaluation.inference import window_boxes
from dropgen.platform.evaluation.memory import plan_memory
from dropgen.platform.evaluation.metrics import dice
from dropgen.platform.networks import build_network, require_crop_fits
from dropgen.platform.segmenter import Segmenter

FULL_SCALE = 1000  # of the int16 that scanners write
VOLUME, IMAGE, MIND = "volume.nii", "image", "mind"
ONCE, WINDOWS = "once per volume", "in every window"
MIB = 2**20
MOST_MIB = 4e9 / MIB  # beside the model, at the default size
MOST_RATIO, LEAST_DICE = 0.75, 0.99  # likewise, of features extracted once
SMALL, PAPER = Network(base=2, downs=1, convs=1), Network(base=20, downs=5)

T = TypeVar("T")


@dataclass(frozen=True)
class MemoryBench:
    """Masks of one volume by a small network of the image alone: what costs memory is what comes after the network.

    Attributes:
        shape: Voxels, [X, Y, Z], at the model's spacing.
        classes: K.
        crop: Edge of a window, voxels; windows overlap by half.
        network: Small, with random weights, so that a run takes minutes on two cores.
        repeats: Rounds.
    """

    shape: tuple[int, int, int] = (512, 512, 300)
    classes: int = 16
    crop: int = 64
    network: Network = SMALL
    repeats: int = 1

    contenders: ClassVar[int] = len(PEERS) + 1


@dataclass(frozen=True)
class FeaturesBench:
    """DropGen masks with features of an untrained network of anatomix's architecture.

    Attributes:
        shape: Voxels, [X, Y, Z].
        classes: K.
        crop: Edge of a window, voxels; windows overlap by half.
        network: The paper's predictor.
        repeats: Rounds.
    """

    shape: tuple[int, int, int] = (160, 160, 128)
    classes: int = 2
    crop: int = 64
    network: Network = PAPER
    repeats: int = 1

    contenders: ClassVar[int] = 2


def bench_memory(spec: MemoryBench, folder: Path, on_run: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Segments a NIfTI file with this platform, with logits of the whole volume, and with MONAI's own stitching.

    Returns:
        Rows `bench, part, peer, median_s, raw_s, peak_mib, raw_peak_mib, loaded_mib, beside_mib, planned_mib,
        least_dice, met, unavailable`. `peak_mib` is the process's most resident memory, `loaded_mib` what it held with
        the model loaded and nothing read, `beside_mib` their difference, `planned_mib` what was planned for that;
        `least_dice` is the least over the classes of the agreement with the mask of the whole logits, by the same
        network; `met`, at the default size, is whether our own way stays below `MOST_MIB`. The last row is DropGen on
        MIND, whose features follow the windows.

    Raises:
        ConfigError: The volume is smaller than a window, or there is no round.
    """
    _require(spec)
    _write_volume(folder, spec.shape)
    planned = {}
    for bundle, segmenter in (
        (IMAGE, image_alone(spec.network, spec.classes, spec.crop)),
        (MIND, with_mind(spec.network, spec.classes, spec.crop)),
    ):
        segmenter.save(folder / bundle)
        planned[bundle] = _planned_mib(segmenter, spec.shape)
    contenders = {peer: (peer, IMAGE) for peer in PEERS} | {f"{SLABS}, MIND": (SLABS, MIND)}

    def arguments(name: str) -> tuple[Any, ...]:
        peer, bundle = contenders[name]
        return peer, folder / bundle, folder / VOLUME, _mask_path(folder, name)

    runs = _interleaved(tuple(contenders), spec.repeats, arguments, run_peer, on_run)
    plain = _mask(folder, PLAIN) if runs[PLAIN] else None
    rows = []
    for name, made in runs.items():
        row = {"bench": "predict", "part": "memory", "peer": name} | _spread(made)
        peer, bundle = contenders[name]
        rows.append(row | {
            "planned_mib": planned[bundle] if peer == SLABS else None,
            "least_dice": _least(_agreement(_mask(folder, name), plain, spec.classes))
            if made and plain is not None and bundle == IMAGE else None,
            "met": row["beside_mib"] < MOST_MIB if made and peer == SLABS and _is_default(spec) else None,
            "unavailable": None if made else "its process was killed: the machine has too little memory for it",
        })  # fmt: skip
    return rows


def bench_features(
    spec: FeaturesBench, folder: Path, on_run: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Predicts one volume with features extracted once, and with features extracted in every window.

    Returns:
        Rows `bench, part, peer, median_s, raw_s, peak_mib, raw_peak_mib, loaded_mib, beside_mib, planned_mib,
        network_s, extractor_s, network_windows, extractor_calls, ratio_to_windows, floor_flops, floor_seconds,
        mean_dice, least_dice, met, unavailable`. The floors are what the ratio would be if nothing but network and
        extractor took time: by their floating-point operations, and by the seconds that their calls took. `met`, at the
        default size, is whether extracting once takes at most `MOST_RATIO` and the masks agree beyond `LEAST_DICE`.

    Raises:
        ConfigError: As `bench_memory`.
    """
    _require(spec)
    _write_volume(folder, spec.shape)
    bundles, planned = {}, {}
    scopes: dict[str, Literal["volume", "window"]] = {ONCE: "volume", WINDOWS: "window"}
    for name, scope in scopes.items():
        segmenter = anatomix_like(spec.network, spec.classes, spec.crop, scope, folder)
        bundles[name], planned[name] = folder / scope, _planned_mib(segmenter, spec.shape)
        segmenter.save(bundles[name])
    runs = _interleaved(
        (ONCE, WINDOWS), spec.repeats,
        lambda name: (bundles[name], folder / VOLUME, _mask_path(folder, name)), run_features, on_run,
    )  # fmt: skip
    if not all(runs.values()):
        raise StoreError("a prediction's process was killed; free memory or choose a smaller --shape")
    windows = len(window_boxes(spec.shape, (spec.crop,) * 3, 0.5, 0))
    by_flops, by_seconds = _flops_floor(spec, windows), _seconds_floor(runs)
    agreement = _agreement(_mask(folder, ONCE), _mask(folder, WINDOWS), spec.classes)
    often = median(run.seconds for run in runs[WINDOWS])
    ratios = {name: median(run.seconds for run in made) / often for name, made in runs.items()}
    mean = float(np.nanmean(agreement))
    met = ratios[ONCE] <= MOST_RATIO and mean > LEAST_DICE if _is_default(spec) else None
    return [
        {"bench": "predict", "part": "features", "peer": name} | _spread(made) | {
            "planned_mib": planned[name],
            "network_s": median(run.network_s for run in made),
            "extractor_s": median(run.extractor_s for run in made),
            "network_windows": windows,
            "extractor_calls": made[0].extractor_calls,
            "ratio_to_windows": ratios[name],
            "floor_flops": by_flops if name == ONCE else 1.0,
            "floor_seconds": by_seconds if name == ONCE else 1.0,
            "mean_dice": mean,
            "least_dice": _least(agreement),
            "met": met if name == ONCE else None,
            "unavailable": None,
        }
        for name, made in runs.items()
    ]  # fmt: skip


def _interleaved(
    names: Sequence[str],
    repeats: int,
    arguments: Callable[[str], tuple[Any, ...]],
    work: Callable[..., Run],
    on_run: Callable[[], None],
) -> dict[str, list[Run]]:
    """Runs every contender once a round, in a new order each; one whose process is killed has no runs."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    killed: set[str] = set()
    for order in rounds(names, repeats, np.random.default_rng(0)):
        for name in order:
            if name not in killed:
                try:
                    runs[name].append(_alone(work, *arguments(name)))
                except BrokenProcessPool:
                    killed.add(name)
                    runs[name].clear()
            on_run()
    return runs


def _alone(work: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in a process that does nothing else, before or after."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _spread(runs: Sequence[Run]) -> dict[str, Any]:
    if not runs:
        return {
            "median_s": None, "raw_s": [], "peak_mib": None, "raw_peak_mib": [], "loaded_mib": None, "beside_mib": None,
        }  # fmt: skip
    return {
        "median_s": median(run.seconds for run in runs),
        "raw_s": [run.seconds for run in runs],
        "peak_mib": round(max(run.peak for run in runs) / MIB),
        "raw_peak_mib": [round(run.peak / MIB) for run in runs],
        "loaded_mib": round(median(run.loaded for run in runs) / MIB),
        "beside_mib": round(max(run.peak - run.loaded for run in runs) / MIB),
    }


def _flops_floor(spec: FeaturesBench, windows: int) -> float:
    with torch.device("meta"):
        method_input = torch.empty(1, 1 + ANATOMIX.channels, *(spec.crop,) * 3)
        image, whole = torch.empty(1, 1, *(spec.crop,) * 3), torch.empty(1, 1, *spec.shape)
        extractor = architecture().eval()
        network = build_network(spec.network, methods.build(DROPGEN), ANATOMIX.channels, spec.classes).eval()
    of_network = windows * _flops(network, method_input)
    of_windows = windows * _flops(_Tapped(extractor), image)
    return (of_network + _flops(_Tapped(extractor), whole)) / (of_network + of_windows)


class _Tapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tapped: torch.Tensor = self.network(image, tap=ANATOMIX.tap)
        return tapped


@torch.no_grad()
def _flops(network: nn.Module, inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(inputs)
    return int(counter.get_total_flops())


def _seconds_floor(runs: dict[str, list[Run]]) -> float:
    network = median(run.network_s for run in runs[WINDOWS])
    once, often = (median(run.extractor_s for run in runs[name]) for name in (ONCE, WINDOWS))
    return (network + once) / (network + often)


def _is_default(spec: MemoryBench | FeaturesBench) -> bool:
    """Whether this is what was promised of; more rounds are no other question."""
    return replace(spec, repeats=type(spec).repeats) == type(spec)()


def _write_volume(folder: Path, shape: tuple[int, int, int]) -> None:
    field = make_features(1, shape)[0].astype(np.float32)
    write_volume(folder / VOLUME, np.rint(FULL_SCALE * field).astype(np.int16), np.eye(4))


def _planned_mib(segmenter: Segmenter, shape: tuple[int, int, int]) -> int:
    blank = Volume(np.broadcast_to(np.float32(0), shape), np.eye(4))
    return round(plan_memory(segmenter, Grid.of(blank, segmenter.spec.preparation)).peak / MIB)


def _mask_path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.npy"


def _mask(folder: Path, name: str) -> np.ndarray:
    mask: np.ndarray = np.load(_mask_path(folder, name), mmap_mode="r")
    return mask


def _agreement(mask: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """Dice of every class, background too: a random network knows no background."""
    return dice(mask + np.uint8(1), other + np.uint8(1), classes + 1)


def _least(agreement: np.ndarray) -> float:
    return float(np.nanmin(agreement))


def _require(spec: MemoryBench | FeaturesBench) -> None:
    edges: tuple[int, ...] = spec.shape  # the command line may name more or fewer
    if len(edges) != 3 or min(edges) < spec.crop:
        raise ConfigError(f"--shape = {spec.shape}: a volume has three axes of at least a window's {spec.crop} voxels")
    require_crop_fits(spec.network, (spec.crop,) * 3)
    if spec.repeats < 1:
        raise ConfigError(f"--repeats = {spec.repeats}: a benchmark needs at least 1 round")
