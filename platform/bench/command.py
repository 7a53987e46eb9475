"""The benchmarks of this floor and those below; `serving/bench/` adds its own to them and is the verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.progress import TaskID

from dropgen.config import to_json
from dropgen.console import progress, say
from dropgen.errors import ConfigError
from dropgen.features.bench.peers import all_peers
from dropgen.features.bench.precompute import PrecomputeBench, bench_precompute
from dropgen.features.bench.store import StoreBench, bench_store
from dropgen.features.bench.timing import LEAST_REPEATS, require_repeats
from dropgen.platform.bench.metrics import LAYOUTS, MetricsBench, bench_metrics
from dropgen.platform.bench.options import edges, numbers, scratch, stated
from dropgen.platform.bench.predict import (
    LEAST_DICE,
    MOST_MIB,
    MOST_RATIO,
    FeaturesBench,
    MemoryBench,
    bench_features,
    bench_memory,
)
from dropgen.platform.bench.record import machine, write_record
from dropgen.platform.bench.step import bench_step, contenders_of, prepare

STEP_CROP = 64
PARTS = ("memory", "features")

Bench = Callable[[argparse.Namespace], dict[str, Any]]
TAKEN_BY = {
    "shape": ("store", "precompute", "predict", "metrics", "segment"), "channels": ("store",),
    "crops": ("store", "step", "predict"), "workers": ("precompute",), "methods": ("step",), "part": ("predict",),
    "classes": ("predict",), "scans": ("segment",),
    "repeats": ("store", "precompute", "step", "predict", "metrics", "segment"),
    "edges": ("serve",), "requests": ("serve",), "clients": ("serve",), "replicas": ("serve",),
}  # fmt: skip


def run(arguments: argparse.Namespace, benches: Mapping[str, Bench]) -> dict[str, Any]:
    """Runs the benchmark that the command line names.

    Args:
        arguments: The command line.
        benches: By name.

    Raises:
        ConfigError: An option is wrong or belongs to another benchmark.
        StoreError: Contenders did not give equal output.
        ResourceError: The root cannot be written.
    """
    _require_fitting(arguments)
    document = benches[arguments.action](arguments)
    say(f"machine: {document['machine']['cpu']}, load {document['machine']['load']} when it began")
    say(f"rows: {document['record']}")
    return document


def _require_fitting(arguments: argparse.Namespace) -> None:
    action = arguments.action
    if arguments.overrides and action != "step":
        raise ConfigError(f"bench {action} trains nothing, so '{arguments.overrides[0]}' says nothing to it")
    for name, actions in TAKEN_BY.items():
        if getattr(arguments, name) is not None and action not in actions:
            *others, last = actions
            takers = f"{', '.join(others)} and {last}" if others else last
            raise ConfigError(f"--{name} belongs to bench {takers}; leave it out of bench {action}")


def _store(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "shape": edges("--shape", arguments.shape),
        "channels": arguments.channels,
        "crops": edges("--crops", arguments.crops),
        "repeats": arguments.repeats,
    }
    spec = StoreBench(**stated(given))
    found, peers = machine(), all_peers(spec.channels)
    with scratch(arguments.root) as folder, progress("rows") as bars:
        task = bars.add_task("bench store", total=2 * len(peers) * len(spec.crops), note="")
        rows = bench_store(spec, peers, folder, lambda row: bars.update(task, advance=1, note=row["peer"]))
    for row in rows:
        say(f"{row['peer']:30} {row['crop']:4}^3 {row['cache']} {_times(row)}")
    return write_record(arguments.root, "store", asdict(spec), rows, found)


def _precompute(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "shape": edges("--shape", arguments.shape),
        "workers": numbers("--workers", arguments.workers, "processes", "1,2"),
        "repeats": arguments.repeats,
    }
    spec = PrecomputeBench(**stated(given))
    found = machine()
    with scratch(arguments.root) as folder, progress("runs") as bars:
        task = bars.add_task("bench precompute", total=2 * len(spec.workers) * spec.repeats, note="")
        rows = bench_precompute(spec, folder, lambda: bars.update(task, advance=1))
    for row in rows:
        say(f"{row['workers']} workers, {row['in_flight']} in flight: {row['median_s']:.2f} s ({row['min_s']:.2f} to "
            f"{row['max_s']:.2f}), {row['ratio_to_serial']:.3f} x serial, {row['volumes_per_second']:.2f} volumes/s, "
            f"extractor busy {100 * row['extractor_busy']:.0f}%")  # fmt: skip
    return write_record(arguments.root, "precompute", asdict(spec), rows, found)


def _metrics(arguments: argparse.Namespace) -> dict[str, Any]:
    spec = MetricsBench(**stated({"shape": edges("--shape", arguments.shape), "repeats": arguments.repeats}))
    found = machine()
    with progress("rounds") as bars:
        task = bars.add_task("bench metrics", total=len(LAYOUTS) * spec.repeats, note="")
        rows = [row for name in LAYOUTS for row in bench_metrics(spec, name, lambda: bars.update(task, advance=1))]
    for row in rows:
        say(f"{row['contender']:8} HD95 and NSD of {spec.classes} {row['layout']} classes: {row['median_s']:.2f} s "
            f"({row['min_s']:.2f} to {row['max_s']:.2f}), {row['ratio_to_monai']:.3f} x MONAI")  # fmt: skip
    return write_record(arguments.root, "metrics", asdict(spec), rows, found)


def _times(row: Mapping[str, Any]) -> str:
    if row["unavailable"]:
        return f"unavailable: {row['unavailable']}"
    return (
        f"{row['median_ms']:8.1f} ms ({row['min_ms']:.1f} to {row['max_ms']:.1f}), {row['bytes'] / 1e6:.0f} MB on disk"
    )


def _step(arguments: argparse.Namespace) -> dict[str, Any]:
    crop, *more = edges("--crops", arguments.crops) or (STEP_CROP,)
    if more:
        raise ConfigError(f"--crops = {arguments.crops}: bench step trains on crops of one size")
    repeats = LEAST_REPEATS if arguments.repeats is None else arguments.repeats
    require_repeats(repeats)
    found = machine()
    with scratch(arguments.root) as folder, progress("blocks") as bars:
        task = bars.add_task("bench step", total=None, note="preparing")
        experiment = prepare(folder, crop, arguments.overrides, arguments.methods)
        contenders, unavailable = contenders_of(experiment, folder)
        bars.update(task, total=repeats * len(contenders), note="")
        rows = bench_step(contenders, repeats, lambda: bars.update(task, advance=1)) + unavailable
    for row in rows:
        say(f"{row['method']:18} {row['features']:7} {_step_time(row)}")
    trained = {key: value for key, value in to_json(experiment).items() if key != "study"}  # its folder is gone
    settings = {"crop": crop, "repeats": repeats, "experiment": trained}
    return write_record(arguments.root, "step", settings, rows, found)


def _step_time(row: Mapping[str, Any]) -> str:
    if row["unavailable"]:
        return f"unavailable: {row['unavailable']}"
    waits = f"waits {100 * row['data_wait']:.1f}% for data"
    return f"{row['median_s']:8.3f} s a step, {row['ratio_to_erm']:.3f} x ERM, {waits}"


def _predict(arguments: argparse.Namespace) -> dict[str, Any]:
    crop, *more = edges("--crops", arguments.crops) or (MemoryBench.crop,)
    if more:
        raise ConfigError(f"--crops = {arguments.crops}: bench predict has windows of one size")
    parts = PARTS if arguments.part is None else (arguments.part,)
    shape = edges("--shape", arguments.shape)
    if shape is not None and len(parts) > 1:
        raise ConfigError("--shape is of one part's volume; name that with --part memory or --part features")
    given = stated({"shape": shape, "crop": crop, "classes": arguments.classes, "repeats": arguments.repeats})
    found = machine()
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    with scratch(arguments.root) as folder, progress("runs") as bars:
        for part in parts:
            spec: MemoryBench | FeaturesBench = MemoryBench(**given) if part == "memory" else FeaturesBench(**given)
            task = bars.add_task(f"bench predict {part}", total=spec.repeats * spec.contenders, note="")

            def ran(task: TaskID = task) -> None:
                bars.update(task, advance=1)

            place = folder / part
            place.mkdir()
            rows += (
                bench_memory(spec, place, ran) if isinstance(spec, MemoryBench) else bench_features(spec, place, ran)
            )
            settings[part] = {**asdict(spec), "network": to_json(spec.network)}
    for row in rows:
        say(f"{row['part']:8} {row['peer']:16} {_predicted(row)}")
    return write_record(arguments.root, "predict", settings, rows, found)


def _predicted(row: Mapping[str, Any]) -> str:
    if row["unavailable"]:
        return f"unavailable: {row['unavailable']}"
    text = f"{row['median_s']:7.1f} s, {row['beside_mib']} MiB beside the model"
    if row["planned_mib"] is not None:
        text += f" (planned {row['planned_mib']})"
    if row["part"] == "memory":
        agreement = "" if row["least_dice"] is None else f", least Dice with whole logits {row['least_dice']:.5f}"
        return f"{text}{agreement}{_promise(row, f'below {MOST_MIB:.0f} MiB')}"
    return (
        f"{text}, {row['ratio_to_windows']:.3f} x extracting in every window (floor {row['floor_flops']:.3f} by FLOPs, "
        f"{row['floor_seconds']:.3f} by the calls' seconds), Dice between the two {row['mean_dice']:.4f}"
        f"{_promise(row, f'at most {MOST_RATIO} x, Dice beyond {LEAST_DICE}')}"
    )


def _promise(row: Mapping[str, Any], promise: str) -> str:
    return "" if row["met"] is None else f"; promised {promise}: {'kept' if row['met'] else 'broken'}"


BENCHES: dict[str, Bench] = {
    "store": _store, "precompute": _precompute, "step": _step, "predict": _predict, "metrics": _metrics,
}  # fmt: skip
