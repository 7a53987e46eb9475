"""Trains the toy over p and seeds; writes the rows, the figure and the table of docs/theory.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dropgen.console import say
from dropgen.manifest import git_commit, versions, write_json
from dropgen.platform.methods import Method
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
PS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75)
PAGE_PS = (0.0, 0.5, 0.75)
NAMES = {"plain": "plain training on [U, S]", "structured_dropout": "group masks", "dropgen": "DropGen",
         "best_stable": "best from S alone", "best_joint": "best from [U, S] of the training environment",
         "best_flipped": "best from [U, S] of the flipped environment"}  # fmt: skip

Row = dict[str, Any]


def trained(toy: Toy, method: Method, p: float, seed: int, crops: int = CROPS, channels: int = CHANNELS) -> Row:
    """Trains one method to a stationary point and scores it exactly in the three environments."""
    end = fit(method, training_batch(toy, method, channels, crops, np.random.default_rng(seed)))
    name = method.name if p > 0 else "plain"
    return scored(toy, name, end.weights) | {"p": p, "seed": seed, "loss": end.loss, "gradient": end.gradient}


def scored(toy: Toy, predictor: str, weights: Weights) -> Row:
    """A predictor's weights with its exact risks (nats) and errors (0..1)."""
    return {
        "predictor": predictor,
        "image_mean": toy.image_mean,
        "weight_image": weights.image,
        "weight_stable": weights.stable,
        "stable_only_risk": toy.risk(group_masks(weights)[2], TRAINING),
        "risk": {name: toy.risk(weights, environment) for name, environment in ENVIRONMENTS.items()},
        "error": {name: toy.error(weights, environment) for name, environment in ENVIRONMENTS.items()},
    }


def sweep(seeds: Sequence[int] = SEEDS, crops: int = CROPS) -> list[Row]:
    """All rows: the Bayes predictors of every toy, then every method, p and seed. Group masks do not rescale."""
    rows = []
    for toy in TOYS:
        best = {"best_stable": toy.best_stable, "best_joint": toy.best_joint(TRAINING),
                "best_flipped": toy.best_joint(FLIPPED)}  # fmt: skip
        rows += [scored(toy, name, weights) for name, weights in best.items()]
        for p in PS:
            methods = (DropGen(p=p), StructuredDropout(p=p, rescale=False)) if p > 0 else (DropGen(p=0.0),)
            rows += [trained(toy, method, p, seed, crops) for method in methods for seed in seeds]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown table of the page: mean ± SD over seeds, risks in nats, errors in percent."""
    lines = [
        "| predictor | weight on U | weight on S | risk: training | risk: noise | risk: flipped | error: training | "
        "error: flipped |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shown = [row for row in rows if row["image_mean"] == TOYS[0].image_mean and row.get("p", 0.0) in PAGE_PS]
    for name in NAMES:
        for p in dict.fromkeys(row.get("p", 0.0) for row in shown if row["predictor"] == name):
            group = [row for row in shown if row["predictor"] == name and row.get("p", 0.0) == p]
            cells = [
                *(_spread([row[key] for row in group], 2) for key in ("weight_image", "weight_stable")),
                *(_spread([row["risk"][key] for row in group], 3) for key in ENVIRONMENTS),
                *(_spread([100 * row["error"][key] for row in group], 1) for key in ("training", "flipped")),
            ]
            lines.append(f"| {NAMES[name]}{f', p = {p:g}' if p > 0 else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def write(folder: Path) -> None:
    """Writes `results/theory.json` and `images/theory.png` below a folder and prints the table."""
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
