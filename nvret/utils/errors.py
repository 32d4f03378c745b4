"""Errors that are meant for the person who runs the package."""

import difflib
from collections.abc import Iterable


class NvretError(ValueError):
    """Bad input. The message names the file, row, key or value and says what was expected."""


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
