"""Six public benchmarks of domain shift: from the archives as their owners publish them to studies."""

from __future__ import annotations

from dropgen.errors import ConfigError, closest
from dropgen.features.studies.benchmarks.amos import AMOS
from dropgen.features.studies.benchmarks.benchmark import Benchmark
from dropgen.features.studies.benchmarks.brats import BRATS
from dropgen.features.studies.benchmarks.cow import COW
from dropgen.features.studies.benchmarks.hvsmr import HVSMR
from dropgen.features.studies.benchmarks.pandg import PANDG
from dropgen.features.studies.benchmarks.prostate import PROSTATE

BENCHMARKS = {benchmark.name: benchmark for benchmark in (BRATS, AMOS, COW, HVSMR, PROSTATE, PANDG)}


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark '{name}' is unknown{closest(name, BENCHMARKS)}")
    return BENCHMARKS[name]
