"""A real S3 server in a process of its own, on loopback, and a bucket to look into from outside."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dropgen.features.store import FeatureStore

COUNT = itertools.count()
ACCESS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@contextmanager
def serve() -> Iterator[str]:
    """The address of a server that lives as long as the block."""
    pytest.importorskip("obstore", reason="needs the extra s3")
    pytest.importorskip("moto", reason="needs the extra dev")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            assert process.poll() is None, "the S3 server did not start"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of the server, seen through boto3 and not through what is tested."""

    name: str
    endpoint: str

    @classmethod
    def make(cls, endpoint: str) -> S3Bucket:
        """A new, empty one."""
        bucket = cls(f"bucket-{os.getpid()}-{next(COUNT)}", endpoint)
        bucket.client().create_bucket(Bucket=bucket.name)
        return bucket

    @property
    def url(self) -> str:
        """An address below the bucket's root."""
        return f"s3://{self.name}/some/prefix"

    def client(self) -> Any:
        """A client of boto3."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id="nobody", aws_secret_access_key="secret",
        )  # fmt: skip

    def names(self) -> list[str]:
        """All objects, relative to `url`."""
        found = self.client().list_objects_v2(Bucket=self.name).get("Contents", [])
        return [item["Key"].removeprefix("some/prefix/") for item in found]

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        return bytes(self.client().get_object(Bucket=self.name, Key=f"some/prefix/{name}")["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        """Puts an object there, or other bytes into one."""
        self.client().put_object(Bucket=self.name, Key=f"some/prefix/{name}", Body=data)

    def remove(self, *names: str) -> None:
        """Deletes objects."""
        for name in names:
            self.client().delete_object(Bucket=self.name, Key=f"some/prefix/{name}")


def store_at(bucket: S3Bucket, root: Path, **features: float) -> FeatureStore:
    """The bucket's store as a machine sees it that keeps its copies below `root`."""
    from dropgen.config import Features  # not for every test that pytest collects
    from dropgen.features.store import FeatureStore

    return FeatureStore.of(Features(store=bucket.url, **features), root)


def refuse_everybody(endpoint: str) -> None:
    """Lets the server accept no credentials any more."""
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", method="POST")
    request.add_header("Content-Type", "application/octet-stream")
    urllib.request.urlopen(request).close()
