"""A replica that keeps more memory than was planned: it ends what it has, takes on nothing new, and is then ill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dropgen.serving.api import create_api
from dropgen.serving.engine import work_once
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.tokens import Tokens
from dropgen.serving.watchdog import LOOKS, Watchdog, WornError
from tests_support.service import GOOD, call, nifti

GIB = 2**30


class Replica:
    """Bytes as a test wants them."""

    def __init__(self, margin: float) -> None:
        self.taken, self.models, self.requests = GIB, 0, 0
        self.told: list[tuple[int, float]] = []
        self.bounds: list[float] = []
        self.watchdog = Watchdog(
            lambda: self.models, lambda: self.requests, margin, lambda *both: self.told.append(both),
            self.bounds.append, lambda: self.taken,
        )  # fmt: skip

    def look(self, times: int = LOOKS) -> None:
        for _ in range(times):
            self.watchdog.look()


def test_what_models_and_the_volume_in_hand_are_planned_to_take_is_no_excess() -> None:
    replica = Replica(GIB)
    replica.taken = 2 * GIB
    replica.look()
    replica.models, replica.taken = 3 * GIB, 5 * GIB
    replica.look()
    with replica.watchdog.predicting(4 * GIB):
        replica.taken = 9 * GIB
        assert replica.watchdog.bound == replica.taken
        replica.look()
    assert not replica.watchdog.worn
    replica.look(LOOKS - 1)  # a peak that is over in time
    replica.taken = 5 * GIB
    replica.look(1)
    replica.taken = 5 * GIB + 1
    replica.look(LOOKS - 1)
    assert not replica.watchdog.worn
    replica.look(1)
    assert replica.watchdog.worn
    replica.look()
    assert replica.told == [(5 * GIB + 1, 5 * GIB)]
    assert replica.bounds[0] == 2 * GIB
    assert replica.bounds[-1] == 5 * GIB


def test_a_worn_replica_is_ill_only_once_it_has_nothing_in_hand() -> None:
    replica = Replica(0)
    replica.requests, replica.taken = 1, 2 * GIB
    with replica.watchdog.job():
        replica.look()
        replica.watchdog.require_sound()
        replica.requests = 0
        replica.watchdog.require_sound()
    with pytest.raises(WornError, match=r"it keeps 2\.00 GiB of memory for 10 s where 1\.00 GiB are planned"):
        replica.watchdog.require_sound()


def test_where_any_memory_may_be_kept_nothing_ever_happens() -> None:
    replica = Replica(math.inf)
    replica.taken = 2**60
    replica.look()
    replica.watchdog.require_sound()
    assert replica.told == []


def test_a_worn_replica_refuses_with_retry_after_and_says_so_with_numbers(registry: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "mlflow").symlink_to(registry / "mlflow")
    limits = Limits(2**27, margin=0)
    api, engine, jobs = create_api(root, Models(root, "blobs@champion", GIB), Tokens({}), limits)
    taken = call(api, "POST", "/v1/jobs", content=nifti(GOOD)).json()
    engine.watchdog._at_rest = 0  # whatever this process takes is too much
    for _ in range(LOOKS):
        engine.watchdog.look()
    refused = call(api, "POST", "/v1/segment", content=nifti(GOOD))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "30")
    assert "keeps too much memory" in refused.json()["error"]
    assert call(api, "GET", f"/v1/jobs/{taken['id']}").json()["state"] == "accepted"
    seen = {
        sample.name: sample.value
        for family in text_string_to_metric_families(call(api, "GET", "/metrics").text)
        for sample in family.samples
    }
    assert seen["dropgen_replicas_replaced_total"] == 1
    assert seen["dropgen_replica_bound_bytes"] < seen["dropgen_replica_rss_bytes"]
    lines = [json.loads(line) for line in (root / "service" / "requests.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if "event" in line]
    assert line["rss_bytes"] > line["bound_bytes"]
    assert work_once(engine, jobs, limits.job_caps)  # another replica, on the same disk, has the job
