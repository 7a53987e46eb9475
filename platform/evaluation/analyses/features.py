"""Feature pictures: the experiment's extractor on a case that is trained on and on one of an unseen domain.

The three first principal components of the instance-normalised features of both cases together are red, green and
blue, so that a colour means the same in both; some single channels stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dropgen.errors import NothingToAnalyseError
from dropgen.features.extractors import build, extract, instance_norm
from dropgen.features.studies.study import Case
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.overlays import INK, MUTED, RULE, View, contrast

CHANNELS = 5  # shown alone
SHARE = (1.0, 99.0)  # percentiles of a component that become 0 and 1 of a colour
SPREAD = 2.5  # standard deviations of a channel that are black and white


def analyse(scene: Scene) -> Analysed:
    """The slice with most of the labels, of the first such cases.

    Raises:
        NothingToAnalyseError: No model of the experiment reads features.
    """
    if scene.bench.extractor is None:
        raise NothingToAnalyseError("no method of the experiment reads features")
    channels = scene.bench.study.image_channels
    extractor = build(scene.bench.experiment.features.extractor, scene.device, channels)
    seen: list[Any] = []
    cases = _cases(scene)
    spreads: dict[str, Tensor] = {}
    for case in scene.track(cases, len(cases)):
        prepared, _, label = scene.bench.stored(case)
        raw = torch.from_numpy(extract(extractor, np.array(prepared.unit), scene.device)[0])
        spreads[case.id] = raw.std(dim=(1, 2, 3))
        seen.append((case, prepared, label, instance_norm(raw[None])[0]))
    mean_c, axes_c3, explained = components(torch.cat([values.flatten(1) for *_, values in seen], dim=1))
    shown = np.linspace(0, extractor.channels - 1, min(CHANNELS, extractor.channels)).round().astype(int)
    planes: list[Any] = []
    colours: list[np.ndarray] = []
    for case, prepared, label, values in seen:
        image = np.asarray(prepared.unit[0])
        view = View.on(Volume(image, prepared.grid.affine))
        place = int(np.argmax(np.count_nonzero(label, axis=view.others)))
        scores = torch.einsum("cxyz,ck->kxyz", values - mean_c[:, None, None, None], axes_c3).numpy()
        colours.append(np.stack([view.cut(score, place) for score in scores], axis=-1))
        singles = {f"channel {c}": view.cut(values[c].numpy(), place) for c in shown}
        planes.append((case, view, view.cut(image, place), singles))
    figure = _draw(planes, _rgb(colours), extractor.name)
    rows: list[dict[str, Any]] = [
        {"what": "component", "index": index, "case": "", "value": value} for index, value in enumerate(explained)
    ] + [
        {"what": "channel_sd_before_norm", "index": c, "case": name, "value": value}
        for name, spread in spreads.items()
        for c, value in enumerate(spread.tolist())
    ]
    names = " and ".join(f"{case.id} ({case.domain})" for case, *_ in seen)
    return Analysed(
        rows,
        figure,
        [
            f"{names}: three components hold {100 * sum(explained[:3]):.0f}% of the variance of {extractor.channels} "
            "channels; anatomy that keeps its colour from row to row is what the network can rely on."
        ],
    )


def components(values_cn: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Principal components of some voxels' features.

    Args:
        values_cn: `[C, n]`.

    Returns:
        The mean `[C]`, the three first axes `[C, 3]` (zeros where there are fewer channels), each with its largest
        entry positive, and every component's share of the variance, largest first.
    """
    values = values_cn.double()
    mean = values.mean(dim=1)
    centred = values - mean[:, None]
    variances, axes = torch.linalg.eigh(centred @ centred.T / values.shape[1])
    variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    first = torch.zeros(len(mean), 3, dtype=torch.float64)
    first[:, : min(3, len(mean))] = (axes * signs)[:, :3]
    total = float(variances.sum())
    shares = [float(value) / total if total else 0.0 for value in variances]
    return mean.float(), first.float(), shares


def _cases(scene: Scene) -> list[Case]:
    """The first training case, and the first validation case of every unseen domain, two at most."""
    study = scene.bench.study
    train = study.split("train")[0]
    unseen = {case.domain: case for case in reversed(study.split("val")) if case.domain not in study.train_domains}
    return [train, *list(unseen.values())[::-1][:2]]


def _rgb(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One scale for all cases, so that they can be compared."""
    every = np.concatenate([part.reshape(-1, 3) for part in scores])
    low, high = np.percentile(every, SHARE, axis=0)
    return [np.clip((part - low) / np.maximum(high - low, 1e-6), 0, 1) for part in scores]


def _draw(planes: Sequence[Any], colours: Sequence[np.ndarray], extractor: str) -> Figure:
    columns = 2 + len(planes[0][3])
    figure = Figure(figsize=(1.75 * columns + 0.4, 1.85 * len(planes) + 0.5))
    grid = figure.subplots(len(planes), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.08})
    for axes, (case, view, image, singles), colour in zip(grid, planes, colours, strict=True):
        low, high = contrast(image)
        axes[0].imshow(image, cmap="gray", vmin=low, vmax=high, aspect=view.aspect)
        axes[1].imshow(colour, aspect=view.aspect)
        for axis, plane in zip(axes[2:], singles.values(), strict=True):
            axis.imshow(plane, cmap="gray", vmin=-SPREAD, vmax=SPREAD, aspect=view.aspect)
        axes[0].set_ylabel(f"{case.id}\n{case.domain}", fontsize=9, color=INK, labelpad=6)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color=RULE, linewidth=0.8)
    titles = ["image", f"{extractor}, components 1 to 3", *planes[0][3]]
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=8.5, color=INK if title == "image" else MUTED, pad=5)
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(), right=0.99, top=1 - 0.3 / figure.get_figheight(), bottom=0.02
    )
    return figure
