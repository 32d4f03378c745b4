"""nvret: hard-negative mining for text-embedding models, and its reproduction in notebooks."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import shtab
from pydantic import ValidationError

from nvret.cli import cost, evaluate, inspect_negatives, mine, profile, train
from nvret.utils.errors import NvretError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one message and exit status 2, not in a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Every notebook gets the whole profile, and papermill warns of each key that a notebook's
    # parameters cell does not repeat; nvret.study.config checks the keys instead
    logging.getLogger("papermill").setLevel(logging.ERROR)
    chosen = _parser().parse_args(arguments)
    from nvret.utils import processes

    try:
        with processes.group():
            chosen.command(chosen)
    except (NvretError, ValidationError) as error:
        print(f"nvret: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nvret: interrupted; the same command continues where this stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvret", description=__doc__)
    shtab.add_argument_to(parser, "--print-completion", help="a completion script for your shell")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (mine, inspect_negatives, train, evaluate, cost, profile):
        part.add(commands)
    return parser
