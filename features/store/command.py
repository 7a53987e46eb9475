"""The verb `store`: status, verify, du, gc."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.filesize import decimal as size_text

from dropgen.config import Experiment, Features, load_experiment, store_place, validate
from dropgen.console import progress, say
from dropgen.errors import ConfigError, StoreError
from dropgen.features.extractors import build
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore
from dropgen.features.store.upkeep import delete, find_garbage, per_kind
from dropgen.features.studies.study import load_study


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """One action on the store.

    Raises:
        ConfigError: An argument is missing, or is one that the action does not take.
        StoreError: Entries or an index are damaged.
    """
    action = arguments.action
    _require_fitting(arguments)
    experiment = None
    features = _whole_store(arguments)
    if arguments.experiment:
        experiment = load_experiment(arguments.experiment, arguments.root, arguments.overrides)
        features = experiment.features
    store = FeatureStore.of(features, arguments.root)
    index = None if experiment is None else _index(experiment, arguments.root, store)
    if action == "status":
        assert index is not None
        document = _status(store, index)
    elif action == "verify":
        document = _verify(store, index)
    elif action == "du":
        document = _usage(store)
    else:
        document = _collect(store, arguments.yes)
    return {"action": action, "store": store.location} | document


def _require_fitting(arguments: argparse.Namespace) -> None:
    action = arguments.action
    if arguments.yes and action != "gc":
        raise ConfigError(f"store {action} deletes nothing; leave out --yes")
    if action == "status" and not arguments.experiment:
        raise ConfigError("store status counts the entries of an experiment; name its YAML file")
    if action in ("du", "gc") and arguments.experiment:
        raise ConfigError(f"store {action} looks at the whole store; leave out the experiment")


def _whole_store(arguments: argparse.Namespace) -> Features:
    """Where the store is when no experiment says so: in its usual place, or where `--features.store` points."""
    place = None
    for item in () if arguments.experiment else arguments.overrides:
        key, _, text = item.partition("=")
        if key != "--features.store":
            raise ConfigError(f"'{item}' changes an experiment and store {arguments.action} was given none")
        place = store_place(text, Path.cwd(), arguments.root)
    return validate(Features, {"store": place}, "--features.store")


def _index(experiment: Experiment, root: Path, store: FeatureStore) -> StudyIndex:
    stored = experiment.features.source != "online"
    study = load_study(experiment.study, root)
    extractor = build(experiment.features.extractor, image_channels=study.image_channels) if stored else None
    return StudyIndex.of(study, extractor, experiment.features.dtype, store)


def _status(store: FeatureStore, index: StudyIndex) -> dict[str, Any]:
    done, missing = index.count(store)
    for kind in KINDS:
        say(f"{kind}: {done[kind]} done, {missing[kind]} missing")
    return {"study": index.study, "done": done, "missing": missing, "bytes": index.sizes(store)}


def _verify(store: FeatureStore, index: StudyIndex | None) -> dict[str, Any]:
    """Raises StoreError when entries are damaged; names all of them."""
    entries = store.everything()
    if index is not None:
        entries = sorted(set(entries) & set(index.entries()))
    damaged = []
    with progress("entries") as bars:
        task = bars.add_task("verify", total=len(entries), note="")
        for entry in entries:
            try:
                store.verify(*entry)
            except StoreError as error:
                damaged.append(str(error))
            bars.update(task, advance=1, note=f"{len(damaged)} damaged" if damaged else "")
    document = {"study": None if index is None else index.study, "entries": len(entries), "damaged": damaged}
    if damaged:
        refusal = StoreError("\n".join([f"{len(damaged)} of {len(entries)} entries are damaged:", *damaged]))
        refusal.document = {"action": "verify", "store": store.location} | document
        raise refusal
    say(f"store {store.location}: all {len(entries)} entries are as they were written")
    return document


def _usage(store: FeatureStore) -> dict[str, Any]:
    sizes = store.sizes()
    indexes = StudyIndex.saved(store)
    kept = {entry for index in indexes for entry in index.entries()}
    studies: list[dict[str, Any]] = [
        {
            "study": index.study,
            "extractor": index.extractor,
            "dtype": index.dtype if index.extractor else None,
            "cases": len(index.keys),
            "bytes": per_kind((entry, sizes[entry]) for entry in index.entries() if entry in sizes),
        }
        for index in indexes
    ]
    total = per_kind(sizes.items())
    unreferenced = per_kind((entry, size) for entry, size in sizes.items() if entry not in kept)
    for study in studies:
        made_by = f", {study['extractor']} as {study['dtype']}" if study["extractor"] else ""
        say(f"{study['study']} ({study['cases']} cases{made_by}): {_line(study['bytes'])}")
    say(f"no study: {_line(unreferenced)}")
    say(f"store {store.location}: {_line(total)}; what studies share counts once")
    return {"studies": studies, "bytes": total, "unreferenced": unreferenced}


def _collect(store: FeatureStore, yes: bool) -> dict[str, Any]:
    garbage = find_garbage(store)
    gone = delete(store, garbage.sizes) if yes else list(garbage.sizes)
    if yes:
        store.sweep()
    size = sum(garbage.sizes[entry] for entry in gone)
    for kind, key in gone:
        say(f"{store.location}/{kind}/{key}  {size_text(garbage.sizes[kind, key])}")
    spared = f"; {len(garbage.spared)} more were written within the hour and stay" if garbage.spared else ""
    done = "deleted" if yes else "that no study refers to; --yes deletes them"
    say(f"{len(gone)} entries of {size_text(size)} {done}{spared}")
    entries = per_kind((entry, 1) for entry in gone)
    return {"deleted": yes, "entries": entries, "bytes": size, "spared": len(garbage.spared)}


def _line(sizes: dict[Any, int]) -> str:
    return ", ".join(f"{kind} {size_text(size)}" for kind, size in sizes.items())
