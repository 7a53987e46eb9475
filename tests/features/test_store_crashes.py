"""A state machine over the life of a store whose writers are killed at any of their file operations.

A writer is a forked process that does what a precompute worker does: claim, prepare, extract, write, verify what
it wrote, commit. It is killed with SIGKILL when it begins the n-th operation that touches the store, of every kind
that changes the disk, so a crash is real and every boundary of the commit protocol can be hit.

How many died, and where: `python -m pytest -s -m nightly tests/features/test_store_crashes.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dropgen.config import Component
from dropgen.features.extractors import build, extract
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import missing_work
from dropgen.features.store import Entry, FeatureStore
from dropgen.features.store.entry import COMMIT
from dropgen.features.store.upkeep import delete, find_garbage
from dropgen.features.studies.prepare import prepare, prepare_label
from dropgen.features.studies.study import Case, Study
from dropgen.features.studies.volume import read_mask, read_volume, write_mask, write_volume
from dropgen.features.worker import Recipe, Work, Worker

WEIGHTS = ({"dilations": (1,)}, {"dilations": (2,)})  # other weights are another fingerprint, as another dilation is
# What Python reports before it touches the disk; writing into an open file is not among it, flushing needs an open.
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")
Death = tuple[int, int]
LAST = 170  # a worker begins about this many operations for a case of three entries
# When it begins this operation, or so many microseconds later: half a file may be written by then.
DEATHS = st.tuples(st.integers(1, LAST), st.sampled_from([0, 0, 0, 0, 20, 100]))
ENDS = (0, -signal.SIGKILL, -signal.SIGALRM)


def fork(work: Callable[[], object], store: FeatureStore, death: Death | None = None) -> int:
    """Runs something in a process of its own, which may die on the way; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        begun = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal begun
            if event in OPERATIONS and arguments and concerns(store, str(arguments[0])):
                begun += 1
                if death is not None and begun == death[0]:
                    if death[1] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    signal.setitimer(signal.ITIMER_REAL, death[1] / 1e6)

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.addaudithook(count)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def concerns(store: FeatureStore, path: str) -> bool:
    """Whether a path is in the store; deleting a folder names its files relative to it."""
    return path.startswith(str(store.folder)) or not path.startswith("/")


def ended(child: int) -> int:
    """0 done, 1 raised, negative: killed by that signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class StoreLife(RuleBasedStateMachine):
    """The study grows, its labels and the extractor's weights change, writers die, gc runs; readers never notice."""

    # Of all lives: the signal a process died of and where, and how often.
    killed: ClassVar[Counter[tuple[int, Death]]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = FeatureStore(self.folder / "store")
        self.study = Study("life", ("background", "organ"), (1.0,) * 3, (4,) * 3, "minmax", False, ())
        self.weights = WEIGHTS[0]
        self.finished: dict[Entry, tuple[int, int]] = {}
        self.expected: dict[Entry, np.ndarray] = {}
        self.add_case()

    @rule()
    def add_case(self) -> None:
        number = len(self.study.cases)
        generator = np.random.default_rng(number)
        image, label = (self.folder / f"{name}{number}.nii" for name in ("image", "label"))
        write_volume(image, generator.random((5, 6, 7), np.float32), np.eye(4))
        write_mask(label, generator.integers(0, 2, (5, 6, 7)), np.eye(4))
        case = Case(f"case{number}", f"case{number}", "site", None, "train", (image,), label)
        self.study = replace(self.study, cases=(*self.study.cases, case))

    @rule(data=st.data())
    def correct_a_label(self, data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(self.study.cases))
        write_mask(case.label, 1 - read_mask(case.label).array, np.eye(4))

    @rule()
    def change_weights(self) -> None:
        self.weights = WEIGHTS[1 - WEIGHTS.index(self.weights)]

    @precondition(lambda self: self.works())
    @rule(data=st.data())
    def write_a_case(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.works()))
        assert self.watch(self.writer(work)) == 0
        assert all(self.store.has(*entry) for entry in work.keys.entries())

    @rule(data=st.data(), death=DEATHS)
    def crash_a_writer(self, data: st.DataObject, death: Death) -> None:
        work = self.some_work(data)
        before = set(self.store.everything())
        outcome = self.killed_at(death, self.watch(self.writer(work, death)))
        new = set(self.store.everything()) - before
        assert new <= set(work.keys.entries())
        assert outcome or {(kind, key) for kind, key in work.keys.entries() if kind in work.kinds} == new

    @rule(data=st.data(), death=DEATHS)
    def crash_one_of_two_writers_of_a_case(self, data: st.DataObject, death: Death) -> None:
        work = self.some_work(data)
        victim, survivor = self.writer(work, death), self.writer(work)
        self.killed_at(death, self.watch(victim))
        assert self.watch(survivor) == 0
        assert all(self.store.has(*entry) for entry in work.keys.entries())

    @rule()
    def restart(self) -> None:
        self.store.sweep()
        assert not list(self.store.folder.glob("*/.*.partial")), "all writers are dead"

    @rule(death=st.none() | DEATHS)
    def collect_garbage(self, death: Death | None) -> None:
        index = self.index()
        index.save(self.store)
        for entry in self.store.everything():
            os.utime(self.store.path(*entry) / COMMIT, (0, self.store.path(*entry).stat().st_mtime - 7200))
        garbage = find_garbage(self.store).sizes
        child = fork(lambda: delete(self.store, garbage), self.store, death)
        outcome = ended(child)
        assert outcome == 0 if death is None else self.killed_at(death, outcome) in ENDS
        left = set(self.store.everything())
        assert not left & set(garbage) or outcome
        for entry in set(self.finished) - left:
            assert entry in garbage
            del self.finished[entry]
        self.finished = {entry: self.stamp(entry) for entry in self.finished}  # the times were turned back

    @invariant()
    def a_reader_sees_only_whole_entries(self) -> None:
        for kind, key in self.store.everything():
            self.store.verify(kind, key)
            # Through Zarr: what this process has mapped must not hide what is on disk.
            assert np.array_equal(zarr.open_array(self.store.path(kind, key), mode="r")[...], self.expected[kind, key])

    @invariant()
    def finished_entries_are_never_computed_again(self) -> None:
        now = {entry: self.stamp(entry) for entry in self.store.everything()}
        assert self.finished.items() <= now.items()
        self.finished = now

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def index(self) -> StudyIndex:
        return StudyIndex.of(self.study, build(self.component()), "float16")

    def works(self) -> list[Work]:
        return missing_work(self.study, self.index(), self.store)

    def some_work(self, data: st.DataObject) -> Work:
        """A case that lacks entries; where none does, a new one, so that there is always somebody to kill."""
        if not self.works():
            self.add_case()
        return data.draw(st.sampled_from(self.works()))

    def component(self) -> Component:
        return Component.of("mind", **self.weights)

    def writer(self, work: Work, death: Death | None = None) -> int:
        """Forks a worker on a case, and notes what its entries must hold."""
        self.note(work)
        recipe = Recipe(self.store, self.study, self.component(), "float16", "commit")

        def run() -> None:
            assert Worker(recipe).run(work).problem is None
            for entry in work.keys.entries():
                self.store.verify(*entry)

        return fork(run, self.store, death)

    def watch(self, child: int) -> int:
        """Reads all that there is for as long as a writer runs; returns how that ended."""
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
            self.a_reader_sees_only_whole_entries()
        return os.waitstatus_to_exitcode(status[1])

    def killed_at(self, death: Death, outcome: int) -> int:
        """Counts a process that did not outlive its work; returns how it ended."""
        assert outcome in ENDS, "it raised"
        if outcome:
            StoreLife.killed[-outcome, death] += 1
        return outcome

    def note(self, work: Work) -> None:
        prepared = prepare([read_volume(work.case.image)], self.study.preparation)
        features, _ = extract(build(self.component()), prepared.unit)
        assert work.case.label is not None
        label = prepare_label(read_mask(work.case.label), prepared.grid)
        values = {"volumes": prepared.unit[0], "labels": label, "features": features.astype(np.float16)}
        self.expected |= {(kind, key): values[kind] for kind, key in work.keys.entries()}

    def stamp(self, entry: Entry) -> tuple[int, int]:
        """Inode and time of the commit record; both change when an entry is written again."""
        status = (self.store.path(*entry) / COMMIT).stat()
        return status.st_ino, status.st_mtime_ns


POINTS = 50  # different operations at whose beginning a process was killed
ROUNDS = 8  # of 25 lives; two gave 43 to 72 points, by what was drawn
QUICK = settings(max_examples=6, stateful_step_count=10, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
def test_no_crash_costs_more_than_the_volumes_in_flight() -> None:
    StoreLife.killed.clear()
    run_state_machine_as_test(StoreLife, settings=QUICK)
    assert StoreLife.killed, "nobody died, so nothing was tested"


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))  # of the night, each with other lives and its own count
def test_no_crash_costs_more_than_the_volumes_in_flight_in_many_lives(part: int) -> None:
    StoreLife.killed.clear()
    began, at_once = time.perf_counter(), set[Death]()
    for _ in range(ROUNDS):
        run_state_machine_as_test(StoreLife, settings=settings(QUICK, max_examples=25, stateful_step_count=30))
        at_once = {death for cause, death in StoreLife.killed if cause == signal.SIGKILL}
        if len(at_once) >= POINTS:
            break
    sys.stdout.write(
        f"\npart {part}: {StoreLife.killed.total()} processes killed at {len(StoreLife.killed)} points, {len(at_once)} "
        f"by SIGKILL at the beginning of an operation, the others by SIGALRM within 0.5 ms; "
        f"{time.perf_counter() - began:.0f} s\n"
    )
    assert len(at_once) >= POINTS
