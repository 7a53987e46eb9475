"""The verb `bench`: the benchmarks of the floors below, and those of this one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dropgen.config import to_json
from dropgen.console import progress, say
from dropgen.platform.bench.command import BENCHES, Bench, run
from dropgen.platform.bench.options import edges, numbers, scratch, stated
from dropgen.platform.bench.record import machine, write_record
from dropgen.serving.bench.segment import WAYS, SegmentBench, bench_segment
from dropgen.serving.bench.serve import ServeBench, bench_serve


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen bench`; see `platform.bench.command.run`."""
    own: dict[str, Bench] = {"segment": _segment, "serve": _serve}
    return run(arguments, {**BENCHES, **own})


def _segment(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "shape": edges("--shape", arguments.shape), "scans": arguments.scans, "repeats": arguments.repeats,
    }  # fmt: skip
    spec, found = SegmentBench(**stated(given)), machine()
    with scratch(arguments.root) as folder, progress("runs") as bars:
        task = bars.add_task("bench segment", total=len(WAYS) * spec.repeats, note="")
        rows = bench_segment(spec, folder, lambda way: bars.update(task, advance=1, note=way))
    for row in rows:
        say(f"{row['way']:16} {row['median_s']:7.2f} s from the first scan in the model to the last one out, model "
            f"busy {100 * row['model_busy']:.0f}%, {row['throughput']:.3f} x ready tensors")  # fmt: skip
    return write_record(arguments.root, "segment", asdict(spec) | {"network": to_json(spec.network)}, rows, found)


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "edges": edges("--edges", arguments.edges),
        "requests": numbers("--requests", arguments.requests, "numbers of requests", "1000,50,100"),
        "clients": arguments.clients,
        "replicas": arguments.replicas,
    }
    spec, found = ServeBench(**stated(given)), machine()
    with scratch(arguments.root) as folder, progress("requests") as bars:
        task = bars.add_task("bench serve", total=sum(spec.requests), note="starting")
        rows = bench_serve(spec, folder, lambda phase: bars.update(task, advance=1, note=phase))
    for row in rows:
        say(_served(row))
    return write_record(arguments.root, "serve", asdict(spec) | {"network": to_json(spec.network)}, rows, found)


def _served(row: Mapping[str, Any]) -> str:
    growth = "a replica was killed" if row["rss_growth"] is None else f"replicas grew by {100 * row['rss_growth']:.1f}%"
    return (
        f"{row['phase']:6} {row['requests']} requests of {row['edge']}^3: {row['failed']} failed, {row['retried']} "
        f"sent again, {row['lost']} lost, {row['doubled']} doubled; P50 {row['p50_ms']:.0f} ms, "
        f"P99 {row['p99_ms']:.0f} ms; {growth}"
    )
