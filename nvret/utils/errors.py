"""Errors that are meant for the person who runs the package."""


class NvretError(ValueError):
    """Bad input. The message names the file, row, key or value and says what was expected."""
