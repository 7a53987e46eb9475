"""What tests of several floors share. Those that need real volumes or golden values skip where they are absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests_support.s3 import ACCESS, S3Bucket, serve
from tests_support.standin import StandIn

# One thread per process, as Ray gives its workers: the cores are few, and sums in another order differ in the last bit.
os.environ["OMP_NUM_THREADS"] = "1"

# A busy machine is no defect of what is tested; pytest-timeout ends what hangs.
settings.register_profile("dropgen", deadline=None)
settings.load_profile("dropgen")

REPOSITORY = Path(__file__).resolve().parents[1]


def _outside(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"needs the folder of {name} volumes: set {variable}")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real labelled volumes."""
    return _outside("DROPGEN_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of values computed by the reference network."""
    return _outside("DROPGEN_GOLDEN", "golden")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server in a process of its own."""
    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A new bucket, and the environment in which it can be used."""
    for key, value in {**ACCESS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(key, value)
    return S3Bucket.make(s3_server)


@pytest.fixture(scope="session")
def filled_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output root with the tiny study and its store."""
    from tests_support.tiny import fill_store, tiny_experiment  # not for every test that pytest collects

    root = tmp_path_factory.mktemp("filled")
    fill_store(tiny_experiment(root), root)
    return root


@pytest.fixture
def root(filled_root: Path, tmp_path: Path) -> Path:
    """A copy of the filled root that a test may write to."""
    shutil.copytree(filled_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Small programs in the place of nnU-Net's."""
    programs = StandIn.install(tmp_path / "programs")
    for module in ("commands", "nnunet"):
        monkeypatch.setattr(f"dropgen.platform.external.{module}.program", programs.program)
    return programs
