"""The same work as a Ray Data pipeline, to be measured against: reading tasks, one model actor, writing tasks."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import ray
import ray.data
import torch

from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.bundle import read_bundle
from dropgen.serving.backend import LocalModel, Recipe
from dropgen.serving.cases import Scan
from dropgen.serving.line import Done, Line, Task
from dropgen.serving.quality import Segmented

Row = dict[str, Any]


def segment_by_ray_data(scans: Sequence[Scan], line: Line, recipe: Recipe, threads: int) -> list[Done]:
    """Segments scans; between its stages voxels travel through the object store.

    Args:
        scans: One block each.
        line: Writes the masks.
        recipe: The model.
        threads: CPU threads of the model.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    preparation = read_bundle(recipe.bundle)[0].preparation

    def read(row: Row) -> Row:
        channels = pickle.loads(row["scan"]).load().channels
        prepared = prepare(channels, preparation)
        return row | {"volume": pickle.dumps(channels[0], 5), "prepared": pickle.dumps(prepared, 5)}

    def write(row: Row) -> Row:
        volume = pickle.loads(row["volume"])
        result = Segmented(volume, Volume(row["mask"], volume.affine), in_model=tuple(row["in_model"]))
        done = line.take(Task(pickle.loads(row["scan"])), lambda _: nullcontext(result), {})
        return {"done": pickle.dumps(replace(done, worker=""))}  # one model, whoever wrote

    rows = (
        ray.data.from_items([{"scan": pickle.dumps(scan)} for scan in scans], override_num_blocks=len(scans))
        .map(read)
        .map(
            _Predictor,  # type: ignore[arg-type]  # a class is as good as a function, which Ray's types do not say
            fn_constructor_args=(recipe, threads),
            num_gpus=1 if torch.cuda.is_available() else None,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .map(write)
        .take_all()
    )
    return [pickle.loads(row["done"]) for row in rows]


class _Predictor:
    def __init__(self, recipe: Recipe, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = LocalModel(recipe)

    def __call__(self, row: Row) -> Row:
        mask, _, span = self._model.in_model(pickle.loads(row.pop("prepared")))
        return row | {"mask": mask, "in_model": list(span)}
