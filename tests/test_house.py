"""The house keeps its shape: floors, homes of the big libraries, one path to every module, declared dependencies."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = ("features", "platform", "tuning", "serving")
VENDORED = REPOSITORY / "serving" / "viewer" / "vendor"  # as others published it
SOURCES = [path for folder in ("dropgen", *FLOORS) for path in sorted((REPOSITORY / folder).rglob("*.py"))]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = EXTRAS["bench"] + EXTRAS["nninteractive"] + EXTRAS["s3"] + EXTRAS["dicom-net"]
UNDECLARED_BY_OTHERS = {"einops"}  # imported by MONAI's SwinUNETR, which declares no dependency on it

# Where a library may be imported; an entry that ends in "/" is a folder.
HOMES = {
    "highdicom": ("serving/dicom_out.py",),
    "mlflow": ("platform/tracking.py", "platform/pyfunc_model.py"),
    "nibabel": ("features/studies/",),
    "optuna": ("tuning/",),
    "ray": (
        "features/actors.py",
        "features/cluster.py",
        "features/crew.py",
        "features/raylet.py",
        "platform/training/distributed.py",
        "tuning/",
        "serving/",
    ),
    "zarr": ("features/store/arrays.py", "features/bench/"),
    "obstore": ("features/store/bucket.py",),
    "blosc2": ("features/bench/",),
    "dicomweb_client": ("serving/dicomweb.py",),
    "dynamic_network_architectures": ("features/extractors/nninteractive.py",),
    "pynetdicom": ("serving/dicom_net.py",),
    "requests": ("serving/dicomweb.py",),
    "tensorstore": ("features/bench/",),
    "xxhash": ("features/store/checksum.py",),
    "zarrs": ("features/bench/",),
}


def imported(path: Path) -> set[str]:
    """Every dotted name that a file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def distribution(requirement: str) -> str:
    """`ray[tune]>=2.60` -> `ray`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, links kept, that a test may spoil."""
    folder = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("dropgen", *FLOORS):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


def run(*command: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo", cwd=folder)


def test_an_import_of_a_higher_floor_is_found(copy: Path) -> None:
    clean = lint_imports(copy)
    assert clean.returncode == 0, clean.stdout
    (copy / "features" / "planted.py").write_text("def late():\n    import dropgen.platform.segmenter\n")
    spoiled = lint_imports(copy)
    assert spoiled.returncode == 1
    assert "dropgen.features.planted -> dropgen.platform.segmenter" in spoiled.stdout


@pytest.mark.parametrize("path", sorted((REPOSITORY / "dropgen").glob("*.py")), ids=lambda path: path.name)
def test_the_ground_floor_imports_nothing_above_it(path: Path) -> None:
    upward = {name for name in imported(path) if name.split(".")[:1] == ["dropgen"] and name.split(".")[1:2]}
    assert not {name for name in upward if name.split(".")[1] in FLOORS}


@pytest.mark.parametrize("library", HOMES)
def test_a_big_library_is_imported_only_at_home(library: str) -> None:
    guests = {relative(path) for path in SOURCES if any(name.split(".")[0] == library for name in imported(path))}
    strangers = [path for path in guests if not path.startswith(HOMES[library])]
    assert guests, f"no file imports {library}: drop the dependency"
    assert not strangers


def test_nnunet_is_a_program_and_no_import() -> None:
    assert [relative(path) for path in SOURCES if any(name.startswith("nnunetv2") for name in imported(path))] == []


@pytest.mark.parametrize("floor", ["features", "serving", "tuning"])
def test_a_second_path_to_a_floor_is_refused_by_lint(floor: str) -> None:
    ruff = str(Path(sys.executable).with_name("ruff"))
    found = run(ruff, "check", "--stdin-filename", "platform/x.py", "-", cwd=REPOSITORY, stdin=f"import {floor}\n")
    assert found.returncode == 1
    assert "TID251" in found.stdout


def test_no_floor_is_a_regular_package() -> None:
    # platform/__init__.py would shadow the standard library; any other one blinds import-linter.
    assert [floor for floor in FLOORS if (REPOSITORY / floor / "__init__.py").exists()] == []


def test_pytest_as_a_module_runs_at_the_root_and_sees_the_standard_platform() -> None:
    tests = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/dropgen/test_errors.py", cwd=REPOSITORY)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "test_errors.py::" in tests.stdout
    module = run(sys.executable, "-c", "import platform; print(platform.__file__, platform.system())", cwd=REPOSITORY)
    assert module.returncode == 0
    assert not module.stdout.startswith(str(REPOSITORY / "platform"))


def test_an_init_file_in_platform_would_break_the_interpreter(copy: Path) -> None:
    probe = (sys.executable, "-c", "import platform; platform.system()")
    assert run(*probe, cwd=copy).returncode == 0
    (copy / "platform" / "__init__.py").touch()
    assert run(*probe, cwd=copy).returncode != 0


def test_no_file_is_longer_than_500_lines() -> None:
    page = [path for path in sorted((REPOSITORY / "serving" / "viewer").rglob("*.*")) if VENDORED not in path.parents]
    files = [*SOURCES, *sorted((REPOSITORY / "tests").rglob("*.py")), *page]
    assert {relative(path): n for path in files if (n := len(path.read_text().splitlines())) > 500} == {}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    owners = metadata.packages_distributions()
    modules = {name.split(".")[0] for path in SOURCES for name in imported(path)}
    outside = {name for name in modules if name not in sys.stdlib_module_names and name != "dropgen"}
    # An optional package need not be installed; its module has its distribution's name.
    owned = {name: owners.get(name, [name]) for name in outside}
    used = {distribution(owner) for name in outside for owner in owned[name] if not owner.startswith("mlflow-")}
    assert used == {distribution(line) for line in PROJECT["dependencies"] + OPTIONAL} - UNDECLARED_BY_OTHERS


def test_every_dependency_has_its_reason_and_its_tested_version() -> None:
    declared = {distribution(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines}
    table = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    explained = {distribution(name) for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}
    assert explained == declared
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert declared <= {distribution(line) for line in pins}
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.\d+")?', line) for line in pins)


def test_coverage_counts_the_statements_of_every_folder(tmp_path: Path) -> None:
    coverage = (sys.executable, "-m", "coverage")
    data, report = f"--data-file={tmp_path / 'data'}", tmp_path / "report.txt"
    ran = run(*coverage, "run", data, "-m", "dropgen", "--version", cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stderr
    report.write_text(run(*coverage, "report", data, "--fail-under=0", cwd=REPOSITORY).stdout)
    for folder in ("dropgen", *FLOORS):
        counted = [int(row.split()[1]) for row in report.read_text().splitlines() if row.startswith(f"{folder}/")]
        assert sum(counted) > 0, report.read_text()
