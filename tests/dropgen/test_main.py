from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dropgen import commands
from dropgen.__main__ import main
from dropgen.commands import VERBS, Verb
from dropgen.errors import StoreError

HEAVY = (
    "matplotlib",
    "mlflow",
    "monai",
    "numpy",
    "optuna",
    "pydantic",
    "ray",
    "rich",
    "scipy",
    "torch",
    "yaml",
    "zarr",
)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], str]:
    """Adds a verb that runs a given function and returns its name."""

    def add(function: Callable[[Any], Any]) -> str:
        module = types.ModuleType("a_verb_of_this_test")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entry = Verb("try something", f"{module.__name__}:command", ("probe",), overrides=True)
        monkeypatch.setitem(commands.VERBS, "probe", entry)
        return "probe"

    return add


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["--version"]])
def test_help_loads_no_heavy_library(words: list[str]) -> None:
    probe = (
        "import sys; from dropgen.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[] 0"
    assert "dropgen" in ran.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_leads_to_a_function_of_one_argument(name: str) -> None:
    module, _, function = VERBS[name].target.partition(":")
    command = getattr(importlib.import_module(module), function)
    assert len(inspect.signature(command).parameters) == 1


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_shows_examples_of_itself_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert VERBS[name].examples
    assert all(line.split()[0] == name for line in VERBS[name].examples)
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert all(f"  dropgen {line}" in shown for line in VERBS[name].examples)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serch"], "unknown verb 'serch'; did you mean 'search'?"),
        (["doctor", "--jsn"], "unknown argument '--jsn' of doctor"),
        (["serve", "--prot", "80"], "unknown argument '--prot' of serve; did you mean '--port'?"),
        (["serve", "--training.steps=5"], "unknown argument '--training.steps=5' of serve"),
        (["train"], "experiment"),
        ([], "VERB"),
    ],
)
def test_a_wrong_word_exits_with_2_and_names_the_closest(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_the_three_exit_codes(verb: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(arguments: Any) -> None:
        raise StoreError("entry ab12 is damaged; run dropgen precompute")

    def crash(arguments: Any) -> None:
        raise ValueError("a\nbug")

    assert main([verb(lambda arguments: {"a": 1})]) == 0
    assert main([verb(refuse)]) == 2
    assert capsys.readouterr().err == "dropgen probe: entry ab12 is damaged; run dropgen precompute\n"
    assert main([verb(crash)]) == 1
    assert capsys.readouterr().err == "dropgen probe: ValueError: a bug (--debug shows where)\n"


@pytest.mark.parametrize("error", [StoreError("damaged"), ValueError("bug")])
def test_debug_lets_the_error_through(error: Exception, verb: Callable[..., str]) -> None:
    def fail(arguments: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        main([verb(fail), "--debug"])


def test_json_prints_one_document_on_stdout_and_the_rest_on_stderr(
    verb: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    from dropgen import console

    def talk(arguments: Any) -> dict[str, Any]:
        console.say("for people")
        sys.stdout.write("from a library\n")
        return {"root": arguments.root}

    assert main([verb(talk), "--json", "--root", "elsewhere"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"root": str(Path("elsewhere").resolve())}
    assert captured.err == "for people\nfrom a library\n"


def test_without_json_the_text_goes_to_stdout(verb: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    from dropgen import console

    def talk(arguments: Any) -> dict[str, Any]:
        console.say("for people")
        return {"a": 1}

    assert main([verb(talk)]) == 0
    assert capsys.readouterr().out == "for people\n"


def test_root_comes_from_the_option_then_the_environment_then_the_folder(
    verb: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path] = []
    name = verb(lambda arguments: seen.append(arguments.root))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DROPGEN_ROOT", raising=False)
    main([name])
    monkeypatch.setenv("DROPGEN_ROOT", "from-environment")
    main([name])
    main([name, "--root", "from-option"])
    assert seen == [tmp_path / folder for folder in ("runs", "from-environment", "from-option")]


def test_overrides_reach_the_verb(verb: Callable[..., str]) -> None:
    seen: list[tuple[str, ...]] = []
    main([verb(lambda arguments: seen.append(arguments.overrides)), "--training.steps=5", "--seeds=[1]"])
    assert seen == [("--training.steps=5", "--seeds=[1]")]
