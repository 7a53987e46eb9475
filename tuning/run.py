"""`dropgen run`: the main job whole, each stage skipped where its result is on record."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from dropgen.config import Experiment, Trial, load_experiment, to_json
from dropgen.console import say
from dropgen.errors import DropGenError
from dropgen.features.cluster import connect
from dropgen.features.studies.check import require_sound
from dropgen.features.studies.study import Study, load_study
from dropgen.manifest import Manifest, code_version, digest, write_json
from dropgen.platform.evaluation import replay_record
from dropgen.platform.evaluation.early_stop import early_stop_note
from dropgen.platform.evaluation.kept import Checkpoint
from dropgen.platform.evaluation.measures import how
from dropgen.platform.evaluation.report import build_report
from dropgen.platform.evaluation.results import group_rows, rules_note
from dropgen.platform.evaluation.significance import significance
from dropgen.platform.evaluation.touches import read_touches, touches_said
from dropgen.platform.external import EXTERNALS, require_available, split
from dropgen.platform.tracking import register
from dropgen.platform.train import Workbench
from dropgen.platform.training.bench import require_trainable
from dropgen.tuning.analyses import analyse_all
from dropgen.tuning.budget import budget, budget_note
from dropgen.tuning.choice import champion, keys_to_test
from dropgen.tuning.columns import columns, columns_note
from dropgen.tuning.early_stops import early_stops
from dropgen.tuning.evaluations import adapt_all, evaluate_all, require_adaptable
from dropgen.tuning.external import run_externals
from dropgen.tuning.filling import fill_store
from dropgen.tuning.search import open_bench, refuse_measure, search
from dropgen.tuning.space import Plan, plan
from dropgen.tuning.stages import Stages
from dropgen.tuning.standing import known_results, known_trials
from dropgen.tuning.summary import (
    absent_rows,
    adapted_rows,
    extraction_notes,
    extraction_of,
    headline,
    ranked,
    ranking_rows,
    seed_notes,
    table_rows,
)
from dropgen.tuning.table import terminal, write_results

PLACES = {
    "store": "Zarr store",
    "tracking_uri": "MLflow store",
    "model_uri": "registered model",
    "segmentations": "segmentations",
    "report": "HTML report",
}


def run(
    experiment: Experiment,
    root: Path,
    *,
    address: str | None = None,
    unavailable: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    by_rank: bool = False,
) -> dict[str, Any]:
    """Study to registered model: check, precompute, search, evaluate, adapt, register, external baselines, report.

    Writes `<root>/<name>/manifest.json`, `summary.json`, `results.md` and `report.html`. Nothing is done twice: a stage
    with the same configuration, inputs and code whose outputs are there is skipped, and Ray is
    started only for a stage that needs it, once for all of them. The test domains are looked at when every choice among
    trained trials has been made on validation cases.

    Args:
        experiment: What to run.
        root: Output root.
        address: Running Ray cluster; a local one by default.
        unavailable: What the table has a line for although it cannot run: `method, options, seed, reason`.
        notes: Sentences that belong under the table.
        by_rank: Whether the table begins with the best on unseen domains, instead of keeping the experiment's order.

    Returns:
        The content of `summary.json`.

    Raises:
        DropGenError: The input's fault, named by the stage that found it.
    """
    folder = root / experiment.name
    manifest = Manifest(folder / "manifest.json", "run", to_json(experiment))
    whole, (experiment, baselines) = experiment, split(experiment)
    require_available(baselines)
    planned = plan(experiment)
    with manifest.running(), ExitStack() as session:
        stages = Stages(manifest)

        def join_ray() -> None:
            session.enter_context(connect(address, experiment.training.workers * experiment.training.threads))

        study = load_study(experiment.study, root)
        require_trainable(experiment.model_copy(update={"methods": planned.methods}), study)
        require_adaptable(experiment, planned.fixed)
        stages.do("check", _files_key(experiment.study, study), lambda: _check(study))
        stored = fill_store(stages, experiment, planned, study, root, join_ray)
        bench = open_bench(experiment, root, planned)
        if bench.choice is not None:
            bench.choice.note(manifest)
        found = stages.do("search", _search_key(bench, planned), lambda: _search(experiment, root, join_ray))
        results = known_results(bench, planned)
        best = champion([result for _, result in results])
        wanted = keys_to_test(experiment, [result for _, result in results])
        keys = [result["key"] for _, result in results if result["key"] in wanted]
        trials = [trial for trial, result in results if result["key"] in wanted]

        measuring = how(study, experiment.evaluation)

        def evaluate() -> tuple[list[Path], Any]:
            join_ray()
            summaries = evaluate_all(bench, trials)
            return [bench.folder(trial) / "evaluation" / "summary.json" for trial in trials], summaries

        tested = digest([keys, bench.index.digest, measuring, code_version("platform")])
        evaluations = stages.do("evaluate", tested, evaluate)

        def adapt() -> tuple[list[Path], Any]:
            join_ray()
            found = adapt_all(bench, trials, experiment.adaptations)
            return [bench.folder(trial) / "evaluation" for trial in trials], found

        adapted: dict[str, Any] = {}
        if experiment.adaptations:
            means = [to_json(one) for one in experiment.adaptations], measuring, code_version("features", "platform")
            adapted = stages.do("adapt", digest([keys, bench.index.digest, means]), adapt)

        beside = None
        if experiment.selection.columns:
            key = digest([[result["key"] for _, result in results], tested, experiment.selection.rule])
            beside = stages.do("columns", key, lambda: _columns(bench, results, evaluations, join_ray))

        def put_into_registry() -> tuple[list[Path], Any]:
            uri = register(root, Path(best["bundle"]), experiment.name, run_id=found["champion"]["run"])
            return [root / "mlflow"], uri

        model_uri = stages.do("register", digest([experiment.name, best["key"]]), put_into_registry)
        replay = _replay(stages, bench, {result["features"] for _, result in results})
        others = _externals(stages, bench, baselines)
        evaluations |= {result["key"]: result["evaluation"] for result in others}
        plain = table_rows([*(result for _, result in results), *others], evaluations)
        rows = [*plain, *adapted_rows(plain, adapted)]
        if by_rank:
            rows = ranked(rows)
        analyses = analyse_all(stages, bench, rows)
        found_pairs = significance(group_rows(rows))
        touches, spent = read_touches(folder), budget(bench, known_trials(bench, planned))
        summary = {
            "experiment": experiment.name,
            "headline": headline(rows),
            "intensity": study.intensity if isinstance(study.intensity, str) else dict(study.intensity),
            "store": bench.store.location,
            "tracking_uri": found["tracking_uri"],
            "model_uri": model_uri,
            "report": str(folder / "report.html"),
            "segmentations": str(_link(folder / "segmentations", Path(best["folder"]) / "evaluation" / "masks")),
            "champion": {name: best[name] for name in ("label", "key", "val_dice", "bundle")},
            "unfinished": found["unfinished"],
            "seconds": stages.seconds,
            "computed_seconds": stages.computed,
            "skipped": stages.skipped,
            "table": rows,
            "ranking": ranking_rows(rows),
            "comparison": found_pairs.to_json() if found_pairs else None,
            "absent": [*absent_rows(plain, found["diverged"], adapted), *map(dict, unavailable)],
            "replay": replay,
            "analyses": analyses,
            "budget": spent,
            "early_stop": (stops := early_stops(bench, planned)),
            "extraction": (extraction := extraction_of(stored, [result for _, result in results])),
            "columns": beside and {"lines": beside, "note": columns_note(beside)},
            "touches": {"count": len(touches), "said": touches_said(touches, rows)},
            "notes": [
                *notes,
                rules_note(group_rows(rows), study.intensity),
                budget_note(spent),
                *(early_stop_note(stops) if stops else ()),
                *extraction_notes(extraction),
                *seed_notes(rows),
                *(replay["said"][:1] if replay["exact"] is False and study.orientation_augmentation else []),
            ],
        }
        write_json(folder / "summary.json", summary)
        shown = "absent", "headline", "replay", "analyses", "touches", "columns"
        stages.do(
            "report",
            digest([rows, measuring, *(summary[name] for name in shown), to_json(whole), code_version("platform")]),
            lambda: ([build_report(whole, root)], None),
        )
        write_json(folder / "summary.json", summary)
        write_results(folder, summary, study.placeholder_spacing)
    return summary


def _files_key(path: Path, study: Study) -> str:
    """Changes with every file that the check reads, without reading any of them."""
    files = [path, *(file for case in study.cases for file in (*case.images, case.label) if file is not None)]
    marks = [(str(file), *_mark(file)) for file in files]
    return digest([marks, code_version("features/studies")])


def _mark(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _check(study: Study) -> tuple[list[Path], Any]:
    require_sound(study)
    return [], {"cases": len(study.cases)}


def _search_key(bench: Workbench, planned: Plan) -> str:
    trials = [bench.key(trial) for trial in planned.fixed]
    spaces = [[to_json(corner) for corner in space.corners()] for space in planned.spaces]
    search = to_json(bench.experiment.search)
    how = {name: search[name] for name in ("sampler", "trials", "scheduler")}
    data = bench.index.digest, to_json(bench.experiment.training), bench.experiment.seeds
    return digest([trials, how, [spaces, data, code_version("platform")] if spaces else None])


def _search(experiment: Experiment, root: Path, join_ray: Callable[[], None]) -> tuple[list[Path] | None, Any]:
    join_ray()
    try:
        document = search(experiment, root, register=False)
    except DropGenError as error:
        error.document = None  # the search's; a run that stops here has no summary
        raise
    outputs = [Path(trial["folder"]) / "result.json" for trial in document["trials"]]
    result = {name: document[name] for name in ("champion", "chosen", "tracking_uri", "diverged", "unfinished")}
    return (outputs if not document["unfinished"] else None), result


def _externals(stages: Stages, bench: Workbench, baselines: Sequence[Trial]) -> list[dict[str, Any]]:
    if not baselines:
        return []

    def work() -> tuple[list[Path], Any]:
        results = run_externals(bench, baselines)
        return [Path(result["folder"]) / "result.json" for result in results], results

    keys = [EXTERNALS[trial.method.name].key(bench, trial) for trial in baselines]
    measuring = how(bench.study, bench.experiment.evaluation)
    results: list[dict[str, Any]] = stages.do(
        "external", digest([keys, bench.index.digest, measuring, code_version("platform")]), work
    )
    return results


def _columns(
    bench: Workbench,
    results: Sequence[tuple[Trial, dict[str, Any]]],
    evaluations: Mapping[str, Mapping[str, Any]],
    join_ray: Callable[[], None],
) -> tuple[list[Path], Any]:
    join_ray()

    def test(trials: Sequence[Trial], checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        return evaluate_all(bench, trials, checkpoint=checkpoint)

    is_rule = bench.experiment.selection.rule == "source_validation"
    return [], columns(results, evaluations, test, source_is_rule=is_rule)


def _replay(stages: Stages, bench: Workbench, sources: set[str | None]) -> dict[str, Any]:
    """What the augmentation's geometry does to stored features, where any trial of these sources trained on them."""
    if "stored" not in sources:
        computed = "online" in sources
        return replay_record.skipped(
            "features are computed from each crop, so none are moved" if computed else "no method uses features"
        )
    assert bench.extractor is not None

    def work() -> tuple[list[Path], Any]:
        found = replay_record.record_replay(bench, bench.root / bench.experiment.name / replay_record.FOLDER)
        return [Path(path) for path in (found["csv"], found["figure"]) if path], found

    augmentation = to_json(bench.experiment.training.augmentation), bench.study.orientation_augmentation
    key = digest([bench.index.digest, bench.study.crop, augmentation, code_version("features", "platform")])
    result: dict[str, Any] = stages.do("replay", key, work)
    return result


def _link(link: Path, target: Path) -> Path:
    """Points a link at the champion's masks, replacing an older one in one step."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    partial.replace(link)
    return link


def finish(summary: Mapping[str, Any]) -> None:
    """Prints the finding, the table, and where everything is."""
    say()
    say(summary["headline"])
    say(terminal(summary["table"], summary["absent"]))
    for note in (*summary["notes"], summary["touches"]["said"]):
        say(note)
    if summary["unfinished"]:
        say(f"not finished in time: {', '.join(summary['unfinished'])}; the same command continues them")
    for key, name in PLACES.items():
        say(f"{name + ':':18}{summary[key]}")
    say(f"{'table as text:':18}{Path(summary['report']).with_name('results.md')}")
    say(f"{'serve it:':18}dropgen serve --name {summary['experiment']} --root {Path(summary['report']).parents[1]}")


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen run EXPERIMENT`."""
    experiment = load_experiment(arguments.experiment, arguments.root, arguments.overrides)
    if arguments.dry_run:
        from dropgen.tuning.dry_run_page import tell  # the dry run stands on the run

        return tell(experiment, arguments.root, measure=arguments.measure)
    refuse_measure(arguments)
    summary = run(experiment, arguments.root, address=arguments.address)
    finish(summary)
    return summary


if __name__ == "__main__":
    from dropgen.__main__ import main

    raise SystemExit(main(["run", *sys.argv[1:]]))
