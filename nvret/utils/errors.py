"""Errors that are meant for the person who runs the package."""

import difflib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path


class NvretError(ValueError):
    """Bad input. The message names the file, row, key or value and says what was expected."""


def check_file(path: Path, expected: str) -> os.stat_result:
    """`NvretError` unless the path leads to a plain file: reading a pipe might never end."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NvretError(f"{path}: no such file, expected {expected}") from error
    except OSError as error:
        raise NvretError(f"{path}: {error.strerror}, expected {expected}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no plain file"
        raise NvretError(f"{path} is {kind}, expected {expected}")
    return status


def check_name(name: str) -> str:
    """The name, which becomes a part of a path; `NvretError` if it could lead elsewhere.

    >>> check_name("top-10_v1.2")
    'top-10_v1.2'
    >>> check_name("../evil")
    Traceback (most recent call last):
    nvret.utils.errors.NvretError: '../evil' is no plain name, expected letters, digits, "-", ...
    """
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise NvretError(
            f'{name!r} is no plain name, expected letters, digits, "-", "_" and, not first, "."'
        )
    return name


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """`NvretError` unless the value is one of the choices."""
    if value not in choices:
        raise NvretError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def hint(value: str, choices: Iterable[str]) -> str:
    """What was perhaps meant, as the end of a message.

    >>> hint("minilm-16", ["minilm-l6", "nq"])
    ", did you mean 'minilm-l6'?"
    >>> hint("bananas", ["minilm-l6", "nq"])
    ''
    """
    close = difflib.get_close_matches(value, choices, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
