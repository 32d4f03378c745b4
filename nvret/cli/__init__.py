"""The command line: each command is a function, its options are the function's parameters.

cyclopts reads types, defaults and docstrings, so that an option is declared once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import cyclopts

import nvret
from nvret.cli import checks, cost, mine, profile, train
from nvret.utils import processes
from nvret.utils.errors import NvretError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one message and exit status 2, not in a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Every notebook gets the whole profile, and papermill warns of each key that a notebook's
    # parameters cell does not repeat; nvret.study.config checks the keys instead
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with processes.group():
            app()(sys.argv[1:] if arguments is None else arguments)
    except (NvretError, cyclopts.CycloptsError) as error:
        print(f"nvret: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nvret: interrupted; the same command continues where this stopped", file=sys.stderr)
        return 130
    return 0


def app() -> cyclopts.App:
    """All commands, with the options of the mining methods that are registered now."""
    made = cyclopts.App(
        "nvret",
        help="Hard-negative mining for text-embedding models, and its reproduction in notebooks.",
        version=nvret.__version__,
        help_format="markdown",
        group_arguments=cyclopts.Group("Arguments", sort_key=0),
        group_parameters=cyclopts.Group("Options", sort_key=1),
        default_parameter=cyclopts.Parameter(negative_iterable=()),  # no --empty-teacher
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    commands = (
        mine.command(), checks.inspect, train.train, checks.evaluate, cost.cost, cost.plan,
        profile.fetch, profile.run, profile.encode, profile.report,
    )  # fmt: skip
    for place, command in enumerate(commands):
        made.command(command, sort_key=place)

    @made.command(name="--print-completion", sort_key=len(commands))
    def print_completion(shell: Literal["bash", "zsh", "fish", "powershell"], /) -> None:
        """Print a completion script for a shell."""
        print(made.generate_completion(shell=shell))

    return made
