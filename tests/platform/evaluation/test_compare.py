"""Two experiments in pairs: what must hold of any two, and every way in which they may not pair."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.__main__ import main
from dropgen.errors import ConfigError
from dropgen.platform.evaluation.paired import Paired, pair, read_results

PEOPLE = [(domain, f"{domain[0]}{i}") for domain, count in (("far", 7), ("near", 9), ("home", 3)) for i in range(count)]
SEEDS = (1, 2, 3)

# By method and seed, the Dice of every case; `PEOPLE` says of whom.
Dice = Mapping[tuple[str, int], np.ndarray]


def write_run(folder: Path, dice: Dice, people: list[tuple[str, str]] = PEOPLE, absent: str = "") -> Path:
    """What `dropgen run` leaves: a summary, and per trial a table of cases with two classes.

    Args:
        folder: Of the experiment.
        dice: By method and seed.
        people: Domain and subject of every case.
        absent: Case whose truth lacks the second class.
    """
    rows = []
    for (method, seed), values in dice.items():
        evaluation = folder / "trials" / f"{method}-{seed}" / "evaluation"
        evaluation.mkdir(parents=True)
        with (evaluation / "cases.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("case", "subject", "domain", "split", "class", "dice"))
            for (domain, subject), value in zip(people, values, strict=True):
                case = f"{domain}-{subject}"
                table.writerow((case, subject, domain, "test", "one", repr(float(value))))
                table.writerow((case, subject, domain, "test", "two", "" if case == absent else repr(float(value))))
        unseen = sorted({domain for domain, _ in people} - {"home"})
        name, _, p = method.partition(" p=")
        rows.append({
            "method": name, "p": float(p) if p else None, "options": {}, "seed": seed, "val_dice": 0.5,
            "target_dice": dict.fromkeys(unseen, 0.5), "evaluation": str(evaluation), "adaptation": None,
        })  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"table": rows, "report": str(folder / "report.html")}))
    return folder


def random_dice(seed: int, methods: tuple[str, ...] = ("erm",), people: int = len(PEOPLE)) -> Dice:
    generator = np.random.default_rng(seed)
    return {(method, trained): generator.random(people) for method in methods for trained in SEEDS}


def compared(a: Path, b: Path, margin: float | None = None) -> Paired:
    (found,) = pair(*(read_results(str(folder), folder.parent) for folder in (a, b)), margin=margin)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "stored", random_dice(1)), write_run(folder / "online", random_dice(2))


def test_an_experiment_differs_from_itself_by_exactly_nothing(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        found = compared(folder, folder, margin=1e-9)
        assert {(each.difference, each.low, each.high) for each in found.differences} == {(0.0, 0.0, 0.0)}
        assert found.overall.non_inferior


def test_exchanging_the_two_flips_every_sign_and_interval(runs: tuple[Path, Path]) -> None:
    there, back = compared(*runs), compared(*reversed(runs))
    for one, other in zip(there.differences, back.differences, strict=True):
        assert (one.place, one.n, one.a, one.b) == (other.place, other.n, other.b, other.a)
        assert one.difference == -other.difference != 0
        assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-0.2, 0.2))
@settings(max_examples=10)
def test_what_the_two_share_cancels_so_that_a_shift_is_found_as_it_is(seed: int, shift: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dice = random_dice(seed)
        shifted = {key: values + shift for key, values in dice.items()}
        found = compared(write_run(Path(folder, "a"), dice), write_run(Path(folder, "b"), shifted))
    for each in found.differences:
        assert (each.difference, each.low, each.high) == pytest.approx((shift,) * 3, abs=1e-9)


def by_hand(differences_so: np.ndarray, domains: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95% interval: subjects drawn within their domain, seeds apart, each draw a mean of domain means."""
    generator = np.random.default_rng(77)
    drawn = np.zeros(20_000)
    trained = generator.integers(len(differences_so), size=(len(drawn), len(differences_so)))
    names = np.unique(domains)
    for name in names:
        own = np.flatnonzero(domains == name)
        taken = own[generator.integers(len(own), size=(len(drawn), len(own)))]
        drawn += differences_so[trained[:, :, None], taken[:, None, :]].mean(axis=(1, 2)) / len(names)
    mean = np.mean([differences_so[:, domains == name].mean() for name in names])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(mean), float(low), float(high)


def test_means_and_intervals_are_those_of_a_bootstrap_in_plain_numpy(runs: tuple[Path, Path]) -> None:
    one, other = (np.stack(list(random_dice(seed).values())) for seed in (1, 2))
    domains = np.array([domain for domain, _ in PEOPLE])
    found = compared(*runs)
    wanted = {"far": ["far"], "near": ["near"], "mean of 2 unseen domains": ["far", "near"], "source": ["home"]}
    assert [each.place for each in found.differences] == list(wanted)
    assert [each.n for each in found.differences] == [7, 9, 16, 3]
    for each, names in zip(found.differences, wanted.values(), strict=True):
        inside = np.isin(domains, names)
        mean, low, high = by_hand((other - one)[:, inside], domains[inside])
        assert each.difference == pytest.approx(mean)
        assert each.b - each.a == pytest.approx(mean)
        assert (each.low, each.high) == pytest.approx((low, high), abs=0.04 * (high - low))


@given(st.floats(1e-6, 1))
@settings(max_examples=30)
def test_b_passes_where_its_whole_interval_lies_above_minus_the_margin(runs: tuple[Path, Path], margin: float) -> None:
    for each in compared(*runs, margin=margin).differences:
        assert each.low is not None
        assert each.non_inferior == (None if each.n < 6 else each.low > -margin)


def test_nothing_is_judged_without_a_margin_or_on_too_few(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    assert {each.non_inferior for each in compared(*runs).differences} == {None}
    for number, sizes in enumerate([(5,), (2, 2, 2), (6, 2), (6, 1)]):
        people = [(f"d{i}", f"s{i}{j}") for i, size in enumerate(sizes) for j in range(size)]
        folder = write_run(tmp_path / str(number), random_dice(1, people=len(people)), people)
        found = compared(folder, folder, margin=0.5).overall
        assert found.non_inferior is None
        assert (found.low is None) == (1 in sizes)
    people = [(f"d{i}", f"s{i}{j}") for i in range(2) for j in range(3)]
    folder = write_run(tmp_path / "enough", random_dice(1, people=6), people)
    assert compared(folder, folder, margin=0.5).overall.non_inferior


def test_a_person_seen_in_two_domains_counts_once(tmp_path: Path) -> None:
    people = [*PEOPLE, ("far", "n0")]
    folder = write_run(tmp_path / "a", random_dice(1, people=len(people)), people)
    assert [each.n for each in compared(folder, folder).differences] == [8, 9, 16, 3]


def test_results_that_were_moved_are_read_where_they_are_now(runs: tuple[Path, Path], tmp_path: Path) -> None:
    expected = compared(*runs)
    moved = [shutil.copytree(folder, tmp_path / folder.name) for folder in runs]
    for folder in moved:
        summary = json.loads((folder / "summary.json").read_text())
        old, new = str(runs[0].parent), str(tmp_path / "gone")
        (folder / "summary.json").write_text(json.dumps(summary).replace(old, new))
    assert compared(*moved) == expected


def say(words: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["compare", *words, "--root", str(root)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_the_table_and_the_finding(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = runs[0].parent
    found = compared(*runs).overall
    code, out, _ = say(["stored", str(runs[1]), "--margin", "50"], root, capsys)
    assert code == 0
    assert f"{100 * found.difference:+.2f}".replace("-", "−") in out
    assert "non-inferior, B loses less than 50 points." in out
    assert "n = 16 subjects, 3 seeds" in out
    assert "Warning: 16 subjects are fewer than 50" in out
    _, out, _ = say(["stored", "online", "--margin", "0.01"], root, capsys)
    assert "B may lose as much as 0.01 points." in out
    _, out, _ = say(["stored", "online"], root, capsys)
    assert "non-inferior" not in out


def refused(words: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code, out, err = say(words, root, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "inf"])
def test_a_margin_that_is_none_is_refused(
    margin: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name the Dice points that may be lost" in refused(
        ["stored", "online", f"--margin={margin}"], runs[0].parent, capsys
    )


def test_what_does_not_pair_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random_dice(1)
    write_run(tmp_path / "whole", dice)
    write_run(tmp_path / "more", random_dice(1, ("erm", "dropgen p=0.5")))
    write_run(tmp_path / "seeds", {key: values for key, values in dice.items() if key[1] != 2})
    write_run(tmp_path / "fewer", {key: values[1:] for key, values in dice.items()}, PEOPLE[1:])
    write_run(tmp_path / "others", dice, [("far", "somebody"), *PEOPLE[1:]])
    write_run(tmp_path / "truths", dice, absent="near-n3")
    write_run(tmp_path / "domains", {key: values[7:] for key, values in dice.items()}, PEOPLE[7:])
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text('{"domains": {}}')
    for other, expected in {
        "more": "'more' has method 'dropgen p=0.5' and 'whole' has not; name with --method",
        "seeds": "'erm' has seeds [1, 2, 3] in 'whole' and [1, 3] in 'seeds'",
        "fewer": "case 'far-f0' is not the same in seed 1 of 'whole' and seed 1 of 'fewer'",
        "others": "case 'far-f0' is not the same",
        "truths": "case 'near-n3' is not the same",
        "domains": "domain 'far' is unseen in one of 'whole' and 'domains' alone",
        "nothing": "no results of 'nothing'",
        "evaluation": "is not the summary of a run",
    }.items():
        assert expected in refused(["whole", other], tmp_path, capsys)
        refused([other, "whole"], tmp_path, capsys)
    assert say(["whole", "more", "--method", "erm"], tmp_path, capsys)[0] == 0
    assert "did you mean 'erm'" in refused(["whole", "more", "--method", "rem"], tmp_path, capsys)
    (tmp_path / "whole" / "trials" / "erm-2" / "evaluation" / "cases.csv").unlink()
    assert "cases.csv is missing" in refused(["whole", "whole"], tmp_path, capsys)


def test_a_seed_whose_cases_differ_from_its_own_experiments_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "torn", random_dice(1))
    table = folder / "trials" / "erm-3" / "evaluation" / "cases.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]))
    assert "seed 1 of 'torn' and seed 3 of 'torn'" in refused(["torn", "torn"], tmp_path, capsys)


def test_two_methods_of_one_name_under_test_time_methods_are_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", random_dice(1))
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    adapted = []
    for row in summary["table"]:
        for label in ("tent", "tent steps=5"):
            evaluation = Path(row["evaluation"]).with_name(f"evaluation-{label}")
            shutil.copytree(row["evaluation"], evaluation)
            adapted.append({**row, "method": "erm+tent", "evaluation": str(evaluation), "adaptation": {"name": "tent"}})
    (folder / "summary.json").write_text(json.dumps({**summary, "table": [*summary["table"], *adapted]}))
    results = read_results("a", tmp_path)
    assert [one.method for one in pair(results, results)] == ["erm", "erm + tent", "erm + tent steps=5"]
    twice = {**summary, "table": summary["table"] * 2}
    (folder / "summary.json").write_text(json.dumps(twice))
    with pytest.raises(ConfigError, match="has seed 1 of 'erm' twice"):
        read_results("a", tmp_path)
