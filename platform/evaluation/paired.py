"""Two experiments' results in pairs: what B scores beyond A with the same methods, seeds and cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dropgen.errors import CheckpointError, ConfigError, closest
from dropgen.manifest import read_json
from dropgen.platform.evaluation.bootstrap import Observations, bootstrap
from dropgen.platform.evaluation.results import Row, ScoredCase, scored_cases, subject_scores
from dropgen.platform.evaluation.significance import SEED, Key

# Below these nothing is judged. With 3 seeds, 91% of simulated intervals hold the truth at 10 subjects of one domain,
# 89% at 6, 85% at 2 domains of 3, and 80% at 3 domains of 2.
LEAST_SUBJECTS, LEAST_IN_DOMAIN = 6, 3
Role = Literal["unseen", "unseen mean", "source mean"]


@dataclass(frozen=True)
class Line:
    """One trial of a run, or one trial under a test-time method."""

    row: Row
    evaluation: Path


@dataclass(frozen=True)
class Results:
    """What a finished run left behind.

    Attributes:
        name: As it was asked for.
        lines: By label of the method, then by seed.
        intensity: The study's rule, or one per modality; None of runs from before it was on record.
    """

    name: str
    lines: Mapping[str, Mapping[int, Line]]
    intensity: str | Mapping[str, str] | None = None


@dataclass(frozen=True)
class Difference:
    """B minus A in one place, Dice in 0..1.

    Attributes:
        place: An unseen domain, or what the mean is over.
        role: Of the place: one unseen domain, their mean, or the mean over the training domains.
        a: Mean of A over seeds and subjects.
        b: The same of B.
        difference: `b - a`.
        low: Lower end of its 95% interval; None where a domain has a single subject.
        high: Its upper end.
        n: Subjects.
        non_inferior: Whether the interval lies above minus the margin; None without a margin or with too few.
    """

    place: str
    role: Role
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    n: int
    non_inferior: bool | None


@dataclass(frozen=True)
class Paired:
    """One method in both experiments: every unseen domain, then their mean, then the source where it was scored."""

    method: str
    seeds: tuple[int, ...]
    differences: tuple[Difference, ...]

    @property
    def overall(self) -> Difference:
        """On the mean of the unseen domains."""
        return next(each for each in self.differences if each.role == "unseen mean")


def read_results(name: str, root: Path) -> Results:
    """Finds what a run left behind, be it moved since.

    Args:
        name: Of an experiment under `root`, or the path of its folder.
        root: Output root.

    Raises:
        CheckpointError: Nothing is there, or nothing of a run.
        ConfigError: A method has a seed twice.
    """
    folder, summary = read_summary(name, root)
    home, lines = Path(summary["report"]).parent, dict[str, dict[int, Line]]()
    for row in summary["table"]:
        seeds = lines.setdefault(label_of(row), {})
        if row["seed"] in seeds:
            raise ConfigError(f"'{name}' has seed {row['seed']} of '{label_of(row)}' twice; run it with each once")
        seeds[row["seed"]] = Line(row, folder / Path(row["evaluation"]).relative_to(home))
    return Results(name, lines, summary.get("intensity"))


def read_summary(name: str, root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of an experiment, as for `read_results`, and its `summary.json`.

    Raises:
        CheckpointError: Nothing is there, or nothing of a run.
    """
    folders = root / name, Path(name).expanduser()
    found = [(folder, summary) for folder in folders if (summary := read_json(folder / "summary.json")) is not None]
    if not found:
        raise CheckpointError(
            f"no results of '{name}': {folders[0]} holds no summary.json; name the folder of an experiment, or run it "
            "first: dropgen run EXPERIMENT.yaml"
        )
    folder, summary = found[0]
    if not {"table", "report"} <= set(summary):
        raise CheckpointError(
            f"{folder / 'summary.json'} is not the summary of a run; name the folder of an experiment"
        )
    return folder, summary


def read_trained(name: str, root: Path) -> list[dict[str, Any]]:
    """Every trial's `result.json` of a finished run, be it moved since.

    Raises:
        CheckpointError: As `read_summary`, or a trial's result is missing.
    """
    folder, summary = read_summary(name, root)
    home, results = Path(summary["report"]).parent, list[dict[str, Any]]()
    for row in summary["table"]:
        if row["adaptation"] is None:
            path = folder / Path(row["folder"]).relative_to(home) / "result.json"
            result = read_json(path)
            if result is None:
                raise CheckpointError(f"{path} is missing; the same dropgen run writes it again")
            results.append(result)
    return results


def label_of(row: Row) -> str:
    """Name and options as one writes them: `dropgen p=0.5`, `erm + tent steps=5`."""
    _, _, test_time = Path(row["evaluation"]).name.partition("-")
    method = row["method"].removesuffix(f"+{test_time.partition(' ')[0]}") if test_time else row["method"]
    options: dict[str, Any] = ({} if row["p"] is None else {"p": row["p"]}) | dict(row["options"])
    trained = " ".join([method, *(f"{name}={value}" for name, value in options.items())])
    return f"{trained} + {test_time}" if test_time else trained


def pair(a: Results, b: Results, method: str | None = None, margin: float | None = None) -> list[Paired]:
    """Compares every method that two experiments ran, or one of them.

    Each seed's and subject's difference is taken first, then seeds and subjects are drawn again: what the two
    experiments share, the first weights and crops of a seed and how hard a subject is, cancels.

    Args:
        a: One experiment.
        b: Another, of the same methods, seeds and cases.
        method: Label of the only one to compare; all where None.
        margin: How much worse B may be and still pass, Dice in 0..1.

    Raises:
        ConfigError: Methods, seeds, domains or cases are not the same.
        CheckpointError: The scores of a trial are missing.
    """
    return [_pair(label, a, b, margin) for label in _labels(a, b, method)]


def _labels(a: Results, b: Results, method: str | None) -> list[str]:
    if method is not None:
        for results in (a, b):
            if method not in results.lines:
                raise ConfigError(f"'{results.name}' has no method '{method}'{closest(method, results.lines)}")
        return [method]
    for one, other in ((a, b), (b, a)):
        if alone := [label for label in one.lines if label not in other.lines]:
            raise ConfigError(
                f"'{one.name}' has method '{alone[0]}' and '{other.name}' has not; name with --method one of both"
            )
    return list(a.lines)


def _pair(label: str, a: Results, b: Results, margin: float | None) -> Paired:
    ours, theirs = a.lines[label], b.lines[label]
    if ours.keys() != theirs.keys():
        raise ConfigError(
            f"'{label}' has seeds {sorted(ours)} in '{a.name}' and {sorted(theirs)} in '{b.name}'; only the same seeds "
            "make pairs"
        )
    seeds = sorted(ours)
    unseen = set(ours[seeds[0]].row["target_dice"])
    shown = _shape(_cases(ours[seeds[0]]))
    tables: list[list[dict[Key, float]]] = []
    for results, lines in ((a, ours), (b, theirs)):
        tables.append([])
        for seed in seeds:
            if odd := unseen ^ set(lines[seed].row["target_dice"]):
                raise ConfigError(f"domain '{min(odd)}' is unseen in one of '{a.name}' and '{results.name}' alone")
            cases = _cases(lines[seed])
            if odd := {name for name, _ in shown ^ _shape(cases)}:
                raise ConfigError(
                    f"'{label}': case '{min(odd)}' is not the same in seed {seeds[0]} of '{a.name}' and seed {seed} of "
                    f"'{results.name}': one lacks it, or its subject, domain or the classes of its truth differ"
                )
            tables[-1].append(subject_scores(cases))
    keys = list(tables[0][0])
    new, home = [key for key in keys if key[0] in unseen], [key for key in keys if key[0] not in unseen]
    if not new:
        raise ConfigError(f"'{label}': no subject of an unseen domain was scored in '{a.name}'")
    domains = sorted({domain for domain, _ in new})
    places: list[tuple[str, Role, list[Key]]] = []
    places += [(domain, "unseen", [key for key in new if key[0] == domain]) for domain in domains]
    places.append(
        (f"mean of {len(domains)} unseen domains" if domains[1:] else "one unseen domain", "unseen mean", new)
    )
    places += [("source", "source mean", home)] if home else []
    return Paired(label, tuple(seeds), tuple(_difference(*place, tables, margin) for place in places))


def _cases(line: Line) -> list[ScoredCase]:
    try:
        return scored_cases(line.evaluation)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing; the same dropgen run writes it again") from None


def _shape(cases: Sequence[ScoredCase]) -> set[tuple[str, tuple[str, ...]]]:
    """What must be alike: of every case its name, then subject, domain and the classes that its truth holds."""
    return {
        (case.case, (case.subject, case.domain, *(name for name, dice in case.dice.items() if math.isfinite(dice))))
        for case in cases
    }


def _difference(
    place: str, role: Role, keys: Sequence[Key], tables: Sequence[Sequence[Mapping[Key, float]]], margin: float | None
) -> Difference:
    a_so, b_so = (np.array([[table[key] for key in keys] for table in seeds]) for seeds in tables)
    seen = Observations.of(keys)
    n = len(set(seen.subjects.tolist()))
    a, b, difference = (float(each.mean(axis=0) @ seen.weights) for each in (a_so, b_so, b_so - a_so))
    if seen.fewest == 1:
        return Difference(place, role, a, b, difference, None, None, n, None)
    drawn = bootstrap([b_so - a_so], seen, np.random.default_rng(SEED))
    low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    enough = n >= LEAST_SUBJECTS and seen.fewest >= LEAST_IN_DOMAIN
    return Difference(
        place, role, a, b, difference, low, high, n, None if margin is None or not enough else low > -margin
    )
