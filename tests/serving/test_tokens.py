from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.errors import ConfigError
from dropgen.serving.tokens import VARIABLE, Tokens, UnauthorisedError, client_token, server_tokens, token_path

HERE = "http://127.0.0.1:8000"
ANNA, BERT = "a" * 20, "b" * 20


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_token_says_who_asks_and_nothing_else_does() -> None:
    tokens = Tokens.of({"anna": ANNA, "bert": BERT})
    assert tokens.who(f"Bearer {ANNA}") == "anna"
    assert tokens.who(f"bearer {BERT}") == "bert"
    for wrong in (None, "", "Bearer", f"Basic {ANNA}", f"Bearer {ANNA}x", f"Bearer {ANNA[:-1]}", ANNA, "Bearer ä"):
        with pytest.raises(UnauthorisedError):
            tokens.who(wrong)
    assert ANNA not in repr(vars(tokens))


def test_a_server_without_a_token_makes_one_for_itself_that_its_client_finds(tmp_path: Path) -> None:
    tokens, made = server_tokens(tmp_path, None)
    assert made is not None
    assert tokens.who(f"Bearer {made}") == "owner"
    assert token_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert client_token(tmp_path, None, HERE) == made
    assert client_token(tmp_path, None, "http://elsewhere.example:8000") is None
    again, shown = server_tokens(tmp_path, None)
    assert shown is None
    assert again.who(f"Bearer {made}") == "owner"


def test_a_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ANNA)
    assert server_tokens(tmp_path, None)[0].who(f"Bearer {ANNA}") == "owner"
    file = tmp_path / "tokens"
    file.write_text(f"# who may ask\nbert {BERT}\nanna {'c' * 20}\n")
    assert server_tokens(tmp_path, file)[0].who(f"Bearer {BERT}") == "bert"
    assert client_token(tmp_path, file, HERE) == BERT


@pytest.mark.parametrize(
    "text", ["", "short\n", f"{ANNA}\n{BERT}\n", f"a b {ANNA}\n", f"../x {ANNA}\n", "x " + "ä" * 20]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError):
        server_tokens(tmp_path, file)
