"""What is told of a start: how far it is, and in one sentence what a replica died of."""

from __future__ import annotations

import pytest
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from dropgen.serving.start import _progress, cause_of

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: ServeReplica:dropgen:segmenter
\tpid: 4711
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file."""
BROKEN = """The deployment failed to start 3 times in a row. This may be due to a problem with its constructor. Error:
ray::ServeReplica:dropgen:segmenter.initialize_and_get_metadata() (pid=4711, ip=10.0.0.1)
RuntimeError: Traceback (most recent call last):
  File "replica.py", line 1, in initialize
dropgen.errors.CheckpointError: /runs/bundle is damaged; register it again"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (KILLED, "its process was killed, likely for want of memory"),
        ("Task was killed due to the node running low on memory.\nMemory on the node was 15.9GB / 16.0GB",
         "Ray killed its process, for the machine was out of memory"),
        (BROKEN, "/runs/bundle is damaged; register it again"),
        (BROKEN.replace("dropgen.errors.CheckpointError", "torch.cuda.OutOfMemoryError"),
         "OutOfMemoryError: /runs/bundle is damaged; register it again"),
        ("gone\n for good", "gone for good"),
        ("", "nothing is known of why"),
    ],
)  # fmt: skip
def test_a_cause_is_one_sentence_out_of_what_ray_tells_at_length(text: str, told: str) -> None:
    assert cause_of(text) == told


def test_progress_says_what_is_there_and_what_is_not() -> None:
    assert _progress(ServeStatus(), "dropgen", 2) == "proxy not there yet, 0 of 2 replicas up"
    deployment = DeploymentStatusOverview("UPDATING", "CONFIG_UPDATE_STARTED", {"RUNNING": 1, "STARTING": 1}, "")
    application = ApplicationStatusOverview("DEPLOYING", "", 0.0, {"segmenter": deployment})
    told = _progress(ServeStatus(applications={"dropgen": application}), "dropgen", 2)
    assert told == "proxy not there yet, 1 of 2 replicas up, 1 starting"
