"""The `dropgen` command: one table of verbs; a verb's module is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dropgen import __version__, console
from dropgen.commands import VERBS, Verb
from dropgen.errors import DropGenError, closest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code: 0 done, 1 a bug, 2 the input's fault."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        parser.error(f"unknown verb '{words[0]}'{closest(words[0], VERBS)}")
    arguments, rest = parser.parse_known_args(words)
    verb = VERBS[arguments.verb]
    if rest and not (verb.overrides and all(word.startswith("--") and "=" in word for word in rest)):
        known = [flag for option in verb.options for flag in option.flags]
        parser.error(f"unknown argument '{rest[0]}' of {arguments.verb}{closest(rest[0].partition('=')[0], known)}")
    arguments.overrides = tuple(rest)
    arguments.root = Path(arguments.root or os.environ.get("DROPGEN_ROOT") or "runs").expanduser().resolve()
    with console.json_mode(arguments.json):
        return _run(verb, arguments)


def _run(verb: Verb, arguments: argparse.Namespace) -> int:
    module, _, function = verb.target.partition(":")
    try:
        document = getattr(importlib.import_module(module), function)(arguments)
    except DropGenError as error:
        if arguments.debug:
            raise
        print(f"dropgen {arguments.verb}: {error}", file=sys.stderr)
        if error.document is not None:
            console.document(error.document)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"dropgen {arguments.verb}: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        cause = " ".join(str(error).split())
        print(f"dropgen {arguments.verb}: {type(error).__name__}: {cause} (--debug shows where)", file=sys.stderr)
        return 1
    if document is not None:
        console.document(document)
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", help="folder for everything that is written (default: DROPGEN_ROOT or ./runs)")
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout, logs on stderr")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="dropgen",
        description="Train, search, serve segmentation models that survive a change of scanner, sequence or site.",
        epilog="example: dropgen demo, then dropgen run configs/experiments/demo.yaml --training.steps=200",
    )
    parser.add_argument("--version", action="version", version=f"dropgen {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            parents=[common],
            help=verb.help,
            description=verb.help,
            epilog="examples:\n" + "\n".join(f"  dropgen {line}" for line in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option in verb.options:
            sub.add_argument(*option.flags, **option.settings)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
