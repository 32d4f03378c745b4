"""The command line: each command is a function, its options are the function's parameters.

cyclopts reads types, defaults and docstrings, so that an option is declared once. A command's
module is imported when the command is run, or its own help is shown.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

import nvret
from nvret.utils import bars, processes
from nvret.utils.errors import NvretError

COMMANDS = (
    "mine:mine", "rank:rank", "checks:inspect", "checks:lint", "train:train", "checks:evaluate",
    "calibrate:calibrate", "cost:cost", "cost:plan", "profile:fetch", "profile:run",
    "profile:encode", "profile:report", "profile:claim", "cache:cache",
)  # fmt: skip


SPIN = "GOMP_SPINCOUNT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one message and exit status 2, not in a traceback."""
    if arguments is None:  # a process of its own
        _spare_garbage_collection()
    _share_cores()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        with processes.group():
            return app().meta(sys.argv[1:] if arguments is None else arguments) or 0
    except (NvretError, cyclopts.CycloptsError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError as error:
        message = f"out of memory: {error}"
    except KeyboardInterrupt:
        print(f"nvret: interrupted; {_left()}", file=sys.stderr)
        return 130
    print(f"nvret: {message}", file=sys.stderr)
    return 2


def _spare_garbage_collection() -> None:
    """Look for garbage seldom, and at the end not at all.

    What is imported for a command are half a million objects and no garbage: to look through them
    again and again takes a third of a second, and once more at the end.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


def _share_cores() -> None:
    """Let OpenMP's threads sleep soon while they wait for each other, not spin.

    Where another program runs, as a notebook does beside the next study, a spinning thread keeps
    the core from the one that it waits for: training a small model then takes four times as long.
    GNU's library reads the variable when torch loads it; alone, it costs some per cent.
    """
    if not {SPIN, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[SPIN] = "3000"


def _left() -> str:
    """What the work that was interrupted leaves."""
    store = sys.modules.get("nvret.utils.store")
    if store and store.KEPT:
        return "the same command continues where this stopped"
    return "nothing was written"


def app() -> cyclopts.App:
    """All commands; those before and after which --quiet may stand are called by its ``meta``."""
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
    for place, command in enumerate(COMMANDS):
        module, name = f"nvret.cli.{command}".split(":")
        text = _docstring(module, name)
        made.command(f"{module}:{name}", name=name, help=text, sort_key=place)

    @made.command(name="--print-completion", sort_key=len(COMMANDS))
    def print_completion(shell: Literal["bash", "zsh", "fish", "powershell"], /) -> None:
        """Print a completion script for a shell."""
        print(made.generate_completion(shell=shell))

    made.meta.suppress_keyboard_interrupt = False

    @made.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        quiet: Annotated[bool, Parameter(help="show no progress bars", negative=())] = False,
    ) -> int | None:
        with _silenced() if quiet else contextlib.nullcontext():
            return made(tokens)

    return made


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    before = os.environ.get(bars.SILENCE)
    os.environ[bars.SILENCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(bars.SILENCE)
        os.environ.update({} if before is None else {bars.SILENCE: before})


def _docstring(module: str, function: str) -> str:
    """Of a function whose module is not imported for it."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    nodes = ast.parse(source).body
    return ast.get_docstring(next(n for n in nodes if getattr(n, "name", None) == function))
