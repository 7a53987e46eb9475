"""The analyses of an experiment as stages of its run; what is on record for the same models is not repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dropgen.manifest import code_version, digest
from dropgen.platform.evaluation.analysed import analyses_folder, record_analysis, wanted
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.results import group_rows
from dropgen.platform.train import Workbench
from dropgen.tuning.stages import Stages


def analyse_all(stages: Stages, bench: Workbench, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `record_analysis` returns of every analysis that the experiment asks for.

    Args:
        stages: Of the run.
        bench: The opened experiment.
        rows: Of its table.

    Raises:
        ResourceError: A figure cannot be written, or a look at the test cases not be logged.
    """
    scene = Scene(bench, group_rows(rows))
    folder = analyses_folder(bench.root / bench.experiment.name)
    models = sorted(f"{row['trial']} {row['evaluation']}" for row in rows)
    code = code_version("features", "platform")
    found = []
    for name in wanted(bench.experiment.analyses):

        def work(name: str = name) -> tuple[list[Path], Any]:
            document = record_analysis(name, scene, folder)
            return [Path(path) for path in (document["csv"], document["figure"]) if path], document

        found.append(stages.do(f"analyse {name}", digest([name, models, bench.index.digest, code]), work))
    return found
