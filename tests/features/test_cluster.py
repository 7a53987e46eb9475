"""One way into Ray: a cluster of our own that ends with the block, or a sentence about the one that was named."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
import ray

from dropgen.errors import ResourceError
from dropgen.features.cluster import connect

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_local_cluster_runs_this_checkout_and_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    @ray.remote
    def where() -> list[str]:
        import dropgen.features.store

        return [dropgen.features.store.__file__]

    before = set(psutil.Process().children(recursive=True))
    with connect(cpus=2):
        assert ray.get(where.remote()) == [str(REPOSITORY / "dropgen" / "features" / "store" / "__init__.py")]
        assert os.environ["RAY_AUTH_MODE"] == "token"  # what this process starts asks for the token as well
        with connect(cpus=1):
            assert ray.is_initialized()
        assert ray.is_initialized(), "an inner block must not end the outer one's cluster"
        refusal = r"has \d+ CPUs and 5000 are asked for.*ray start --head --num-cpus=5000"
        with pytest.raises(ResourceError, match=refusal), connect(cpus=5000):
            pass
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=20)
    assert not alive


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    refusal = rf"no Ray cluster answers at 127.0.0.1:{port}: .*refused; start one with"
    with pytest.raises(ResourceError, match=refusal), connect(f"127.0.0.1:{port}", cpus=3):
        pass
    assert time.monotonic() - started < 10
