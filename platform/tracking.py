"""MLflow: one parent run per search, one child per trial, and the registry of trained bundles.

Everything lies under `<root>/mlflow` (sqlite and files), nothing is sent anywhere, and every call
names its run: MLflow's process-wide active run would mix concurrent trials up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by mlflow while it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from dropgen import __version__, console
from dropgen.errors import RegistryError
from dropgen.manifest import read_json, write_json
from dropgen.platform.bundle import read_record
from dropgen.platform.card import model_card

KEY = "dropgen.key"
REGISTERED = "registered"
PYFUNC = Path(__file__).with_name("pyfunc_model.py")
ARTIFACTS = "/mlflow/artifacts/"
CARD = "model_card.json"
PARAMETER_LIMIT = 6000  # characters; mlflow refuses more

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Tracker:
    """Runs and models under one root.

    Attributes:
        uri: Tracking and registry address, for `mlflow ui --backend-store-uri`.
    """

    def __init__(self, root: Path) -> None:
        self._artifacts = root / "mlflow" / "artifacts"
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self.uri = f"sqlite:///{_database(root)}"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def start_parent(self, experiment: str, name: str, config: Mapping[str, Any], key: str | None = None) -> str:
        """Begins a run that trials are filed under.

        Args:
            experiment: MLflow experiment; made when new.
            name: Shown in lists.
            config: Nested plain values; stored as dotted parameters and as `config.json`.
            key: A run with this key is continued instead of a second one begun.

        Returns:
            The run id.
        """
        return self._start(self._experiment(experiment), name, config, key, {})

    def start_child(self, parent: str, name: str, config: Mapping[str, Any], key: str | None = None) -> str:
        """Begins (or, by `key`, continues) a trial's run under `parent`; see `start_parent`."""
        experiment_id = self.client.get_run(parent).info.experiment_id
        return self._start(experiment_id, name, config, key, {"mlflow.parentRunId": parent})

    def log(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Adds one point to each named curve; the same point logged twice is one point."""
        self.client.log_batch(run_id, metrics=[Metric(name, value, 0, step) for name, value in metrics.items()])

    def log_curve(self, run_id: str, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Adds a whole curve of (step, value)."""
        metrics = [Metric(name, value, 0, step) for step, value in points]
        for start in range(0, len(metrics), 1000):  # mlflow's limit per call
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def tag(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Sets tags; None is left out."""
        known = {name: str(value) for name, value in tags.items() if value is not None}
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in known.items()])

    def attach(self, run_id: str, path: Path) -> None:
        """Stores a file or a folder with the run."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), path.name)
        else:
            self.client.log_artifact(run_id, str(path))

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Ends a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, (self._artifacts / name).as_uri()))
            except MlflowException:  # another process made it in between
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _start(
        self, experiment_id: str, name: str, config: Mapping[str, Any], key: str | None, tags: dict[str, str]
    ) -> str:
        if key is not None:
            tags |= {KEY: key}
            conditions = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
            for run in self.client.search_runs([experiment_id], conditions, max_results=1):
                self.client.update_run(run.info.run_id, status="RUNNING")
                return str(run.info.run_id)
        run_id = str(self.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
        params = [Param(path, str(value)[:PARAMETER_LIMIT]) for path, value in _leaves(config)]
        for start in range(0, len(params), 100):  # mlflow's limit per call
            self.client.log_batch(run_id, params=params[start : start + 100])
        self.client.log_dict(run_id, dict(config), "config.json")
        return run_id


def register(root: Path, bundle: Path, name: str, alias: str = "champion", run_id: str | None = None) -> str:
    """Copies a bundle into the registry and points an alias at it.

    The same weights under the same name are not registered twice. The copy is a pyfunc model ("models
    from code") whose only artifact is the bundle, so that third parties can load it with MLflow alone.

    Args:
        root: Output root; the registry is `<root>/mlflow`.
        bundle: Segmenter folder. A `result.json` beside it adds validation Dice and commit to the tags.
        name: Registered model name.
        alias: Set to this version, moved from any other.
        run_id: The trial's run; a run of its own is made when None.

    Returns:
        `models:/name@alias`.

    Raises:
        CheckpointError: The folder is no bundle.
        RegistryError: MLflow refuses the name or the alias.
    """
    record = read_record(bundle)
    tracker = Tracker(root)
    client = tracker.client
    tags = _tags(bundle, record)
    try:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{name}'")
        version = next((entry.version for entry in versions if entry.tags.get("bundle") == tags["bundle"]), None)
        if version is None:
            if run_id is None:
                run_id = tracker.start_parent(REGISTERED, name, record["spec"])
                tracker.finish(run_id)
            logged = _log_pyfunc(client, run_id, bundle)
            version = client.create_model_version(name, logged, run_id, tags=tags).version
        # Written again each time: a model that was evaluated after it was registered gets its scores.
        source = client.get_model_version(name, version).source or ""
        write_json(_model_folder(root, source) / CARD, model_card(bundle, name))
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        cause = " ".join(error.message.split())
        raise RegistryError(f"cannot register {bundle} as '{name}' with alias '{alias}': {cause}") from error
    return f"models:/{name}@{alias}"


@dataclass(frozen=True)
class Registered:
    """One version of a registered model.

    Attributes:
        name: Its name.
        version: Its number, as text.
        bundle: Folder of the bundle.
        card: The model card made when it was registered; None where that was before there were cards.
    """

    name: str
    version: str
    bundle: Path
    card: dict[str, Any] | None


def resolve(root: Path, name: str, alias: str = "champion", version: str | None = None) -> Registered:
    """Finds `models:/name@alias`, or `models:/name/version`.

    Raises:
        RegistryError: No such model, alias or version, or its files are gone.
    """
    how = f"run: dropgen register BUNDLE --name {name} --alias {alias} --root {root}"
    if not _database(root).exists():
        raise RegistryError(f"no model is registered under {root}; {how}")
    client = Tracker(root).client
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException:
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise RegistryError(f"no model '{name}' is registered under {root} (there: {known}); {how}") from None
    if version is None and alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise RegistryError(f"model '{name}' has no alias '{alias}' yet (there: {known}); {how}")
    number = aliases[alias] if version is None else version
    try:
        source = client.get_model_version(name, number).source or ""
    except MlflowException:
        raise RegistryError(
            f"model '{name}' has no version {number}; `dropgen serve` lists them at /v1/models"
        ) from None
    folder = _model_folder(root, source)
    bundle = folder / "artifacts" / "bundle"
    if not bundle.is_dir():
        uri = f"models:/{name}@{alias}" if version is None else f"models:/{name}/{version}"
        raise RegistryError(f"the files of {uri} are gone from {bundle}; {how}")
    return Registered(name, str(number), bundle, read_json(folder / CARD))


def fetch(root: Path, name: str, alias: str = "champion") -> Path:
    """The bundle folder of `models:/name@alias`; raises as `resolve`."""
    return resolve(root, name, alias).bundle


def registered_models(root: Path) -> dict[str, dict[str, Any]]:
    """Of every registered model its aliases (name to version) and its versions, oldest first."""
    if not _database(root).exists():
        return {}
    client = Tracker(root).client
    return {
        # `search_registered_models` leaves the aliases out.
        model.name: {
            "aliases": {
                alias: str(number) for alias, number in client.get_registered_model(model.name).aliases.items()
            },
            "versions": sorted(
                (str(entry.version) for entry in client.search_model_versions(f"name = '{model.name}'")), key=int
            ),
        }
        for model in client.search_registered_models()
    }


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen register`."""
    bundle = arguments.bundle.expanduser().resolve()
    uri = register(arguments.root, bundle, arguments.name, arguments.alias)
    console.say(f"registered {bundle} as {uri}")
    console.say(f"serve it: dropgen serve --name {arguments.name} --alias {arguments.alias} --root {arguments.root}")
    return {"model_uri": uri, "tracking_uri": Tracker(arguments.root).uri, "bundle": str(bundle)}


def _database(root: Path) -> Path:
    return root / "mlflow" / "mlflow.db"


def _model_folder(root: Path, source: str) -> Path:
    """Only what lies below the artifact folder counts, so a root that was moved still serves."""
    return root / "mlflow" / "artifacts" / source.partition(ARTIFACTS)[2]


def _log_pyfunc(client: MlflowClient, run_id: str, bundle: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        staged = Path(folder) / "bundle"
        shutil.copytree(bundle, staged)  # the artifact keeps the name of the folder it came from
        mlflow.pyfunc.save_model(
            path=str(model),
            python_model=str(PYFUNC),
            artifacts={"bundle": str(staged)},
            model_config={"modality": None},
            pip_requirements=[f"dropgen=={__version__}"],
        )
        client.log_artifacts(run_id, str(model), "model")
    return f"{client.get_run(run_id).info.artifact_uri}/model"


def _tags(bundle: Path, record: Mapping[str, Any]) -> dict[str, str]:
    spec, result = record["spec"], read_json(bundle.parent / "result.json") or {}
    tags = {
        "bundle": record["weights_sha256"],
        "study": spec["study"],
        "method": spec["method"]["name"],
        "p": result.get("p", spec["method"].get("p")),
        "val_dice": result.get("val_dice"),
        "commit": result.get("commit"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list | tuple) else value
