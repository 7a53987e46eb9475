"""Trains the toy over p and seeds; writes the rows, the figure and the table of docs/theory.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from dropgen.console import say
from dropgen.manifest import git_commit, versions, write_json
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.structured_dropout import StructuredDropout
from dropgen.platform.theory.figure import draw
from dropgen.platform.theory.fit import SIDE, fit, training_batch
from dropgen.platform.theory.toy import FLIPPED, NOISE, TRAINING, Toy, Weights, group_masks

ENVIRONMENTS = {"training": TRAINING, "noise": NOISE, "flipped": FLIPPED}
TOYS = (Toy(), Toy(image_mean=2.0))
CHANNELS = 12  # of MIND
CROPS = 1000
SEEDS = (0, 1, 2, 3, 4)
PS = (0.05, 0.1, 0.25, 0.5, 0.75)
PAGE_PS = (0.0, 0.5, 0.75)
NAMES = {
    "plain": "plain training",
    "structured_dropout": "group masks",
    "dropgen": "DropGen",
    "dropgen_one_channel": "DropGen, S in one channel",
    "best_stable": "best without U",
    "best_joint": "best with U, of the training environment",
    "best_flipped": "best with U, of the flipped environment",
}

Row = dict[str, Any]


def sweep(seeds: Sequence[int] = SEEDS, crops: int = CROPS) -> list[Row]:
    """All rows: the Bayes predictors of every toy, then every method, p and seed. Group masks do not rescale."""
    rows = []
    for toy in TOYS:
        best = {
            "best_stable": toy.best_stable,
            "best_joint": toy.best_joint(TRAINING),
            "best_flipped": toy.best_joint(FLIPPED),
        }
        rows += [scored(toy, name, weights) for name, weights in best.items()]
        rows += [trained(toy, "plain", DropGen(p=0.0), seed, crops) for seed in seeds]
        for p in PS:
            for seed in seeds:
                rows.append(trained(toy, "structured_dropout", StructuredDropout(p=p, rescale=False), seed, crops))
                rows.append(trained(toy, "dropgen", DropGen(p=p), seed, crops))
                rows.append(trained(toy, "dropgen_one_channel", DropGen(p=p), seed, crops, channels=1))
    return rows


def trained(
    toy: Toy,
    predictor: str,
    method: DropGen | StructuredDropout,
    seed: int,
    crops: int = CROPS,
    channels: int = CHANNELS,
) -> Row:
    """Trains one method to a stationary point and scores it exactly."""
    end = fit(method, training_batch(toy, method, channels, crops, np.random.default_rng(seed)))
    found = {"p": method.p, "channels": channels, "seed": seed, "loss": end.loss, "gradient": end.gradient}
    return scored(toy, predictor, end.weights) | found


def scored(toy: Toy, predictor: str, weights: Weights) -> Row:
    """A predictor's weights, with its exact risks (nats) and errors (0..1) in the three environments."""
    return {
        "predictor": predictor,
        "image_mean": toy.image_mean,
        "weight_image": weights.image,
        "weight_stable": weights.stable,
        "stable_only_risk": toy.risk(group_masks(weights)[2], TRAINING),
        "risk": {name: toy.risk(weights, environment) for name, environment in ENVIRONMENTS.items()},
        "error": {name: toy.error(weights, environment) for name, environment in ENVIRONMENTS.items()},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown table of the page: mean ± SD over seeds, risks in nats, errors in percent."""
    lines = [
        "| predictor | weight on U | weight on S | risk: training | risk: U zeroed | risk: flipped | error: training | "
        "error: flipped |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shown = [row for row in rows if row["image_mean"] == TOYS[0].image_mean and row.get("p", 0.0) in PAGE_PS]
    for name, shown_as in NAMES.items():
        for p in dict.fromkeys(row.get("p", 0.0) for row in shown if row["predictor"] == name):
            group = [row for row in shown if row["predictor"] == name and row.get("p", 0.0) == p]
            cells = [
                *(_spread([row[key] for row in group], 2) for key in ("weight_image", "weight_stable")),
                _spread([row["risk"]["training"] for row in group], 3),
                _spread([row["stable_only_risk"] for row in group], 3),
                _spread([row["risk"]["flipped"] for row in group], 3),
                *(_spread([100 * row["error"][key] for row in group], 1) for key in ("training", "flipped")),
            ]
            lines.append(f"| {shown_as}{f', p = {p:g}' if p > 0 else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def write(folder: Path) -> None:
    """Writes `results/theory.json` and `images/theory.png` below a folder and prints the table."""
    torch.set_num_threads(1)  # sums in one order give the same rows on every number of cores
    rows = sweep()
    settings = {"channels": CHANNELS, "crops": CROPS, "voxels_per_crop": SIDE**3, "seeds": SEEDS, "p": PS}
    record = {"settings": settings, "commit": git_commit(), "versions": versions(("numpy", "scipy", "torch"))}
    write_json(folder / "results" / "theory.json", record | {"rows": rows})
    (folder / "images").mkdir(exist_ok=True)
    draw(TOYS[0], rows).savefig(folder / "images" / "theory.png", dpi=160, metadata={"Software": None})
    say(table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains the toy of docs/theory.md again.")
    parser.add_argument(
        "folder", type=Path, help="where results/theory.json and images/theory.png go, for example docs"
    )
    write(parser.parse_args().folder)
