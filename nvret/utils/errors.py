"""Errors that are meant for the person who runs the package."""

from collections.abc import Iterable


class NvretError(ValueError):
    """Bad input. The message names the file, row, key or value and says what was expected."""


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """`NvretError` unless the value is one of the choices."""
    if value not in choices:
        raise NvretError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
