"""Who may ask: bearer tokens, of which a server keeps hashes only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dropgen.errors import ConfigError, DropGenError, ResourceError

VARIABLE = "DROPGEN_TOKEN"
OWNER = "owner"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LEAST_LENGTH = 16


class UnauthorisedError(DropGenError):
    """No token, or none that is known."""


class ForbiddenError(DropGenError):
    """The request comes from where none may."""


class Tokens:
    """Names and the hashes of their tokens; empty where everybody may ask.

    Args:
        hashes: Name to sha256, hexadecimal.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def who(self, authorization: str | None) -> str:
        """The name behind an Authorization header; "anyone" where no token is asked for.

        Raises:
            UnauthorisedError: Missing or unknown.
        """
        if not self._hashes:
            return "anyone"
        scheme, _, token = (authorization or "").partition(" ")
        found = hashlib.sha256(token.strip().encode()).hexdigest()
        # All are compared, each in constant time: how long it takes tells nothing.
        names = [name for name, known in self._hashes.items() if hmac.compare_digest(found, known)]
        if scheme.lower() != "bearer" or not names:
            raise UnauthorisedError("this service asks for a token; send the header Authorization: Bearer TOKEN")
        return names[0]

    @classmethod
    def of(cls, tokens: Mapping[str, str]) -> Tokens:
        """Tokens by name.

        Raises:
            ConfigError: A name or a token that is none.
        """
        for name, token in tokens.items():
            if not NAME.fullmatch(name):
                raise ConfigError("a token's name has 1 to 64 letters, digits, dots, dashes or underscores")
            if len(token) < LEAST_LENGTH or not token.isascii():
                raise ConfigError(
                    f"the token of '{name}' is shorter than {LEAST_LENGTH} ASCII characters and could be guessed; "
                    "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
        return cls({name: hashlib.sha256(token.encode()).hexdigest() for name, token in tokens.items()})


def require_here(host: str, origin: str | None) -> None:
    """Refuses what a page of another site makes a browser of this machine send; it matters where no token is asked for.

    Such a page asks by a name that its owner points at loopback once it is loaded (as in CVE-2025-62593 of Ray), or
    across origins.

    Args:
        host: The Host header.
        origin: The Origin header, which browsers alone send.

    Raises:
        ForbiddenError: The host is not this machine by its own name, or the origin is another than this service.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        here = name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        here = False
    if not here or origin not in (None, f"http://{host}", f"https://{host}"):
        raise ForbiddenError(
            "without a token this service answers this machine alone, and no page of another site; "
            "ask at http://127.0.0.1, or start it without --insecure"
        )


def token_path(root: Path) -> Path:
    """Where a server keeps the token that it made, and a client on the same root finds it."""
    return root / "service" / "token"


def server_tokens(root: Path, file: Path | None) -> tuple[Tokens, str | None]:
    """The tokens that a server knows: of the file, else of the environment, else one made and kept under the root.

    Args:
        root: Output root.
        file: One token a line, with its owner's name before it where there are several.

    Returns:
        The tokens, and the one that was just made, to be shown once.

    Raises:
        ConfigError: The file cannot be read, or a token is none.
        ResourceError: The made one cannot be kept.
    """
    if file is not None:
        return Tokens.of(_read(file)), None
    if token := os.environ.get(VARIABLE):
        return Tokens.of({OWNER: token}), None
    kept = token_path(root)
    if kept.exists():
        return Tokens.of(_read(kept)), None
    made = secrets.token_urlsafe(32)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(made + "\n")
    except OSError as error:
        raise ResourceError(f"cannot write {kept} ({error.strerror}); choose a writable folder with --root") from None
    return Tokens.of({OWNER: made}), made


def client_token(root: Path, file: Path | None, url: str) -> str | None:
    """The token a client sends: of the file, else of the environment, else the one that a server left under the root.

    Raises:
        ConfigError: The file cannot be read.
    """
    if file is not None:
        return next(iter(_read(file).values()))
    # What a server on this machine left is not shown to another.
    here = urlsplit(url).hostname in ("127.0.0.1", "localhost")
    kept = token_path(root)
    return os.environ.get(VARIABLE) or (next(iter(_read(kept).values())) if here and kept.exists() else None)


def _read(file: Path) -> dict[str, str]:
    try:
        lines = [line.split() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {file} cannot be read ({error})") from None
    if not lines or any(len(words) > 2 for words in lines) or (len(lines) > 1 and any(len(w) != 2 for w in lines)):
        raise ConfigError(f"{file} holds no tokens; write one line 'NAME TOKEN' for each who may ask")
    return {(words[0] if len(words) == 2 else OWNER): words[-1] for words in lines}
