"""Progress bars: tqdm's, where somebody watches them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

SILENCE = "TQDM_DISABLE"  # tqdm's own variable, which processes that are started inherit


def are_shown() -> bool:
    """Whether stderr is a terminal or a notebook, and ``$TQDM_DISABLE`` is not set.

    >>> os.environ[SILENCE] = "1"
    >>> are_shown()
    False
    >>> del os.environ[SILENCE]
    """
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    silent = os.environ.get(SILENCE, "0") not in ("", "0")
    return not silent and (notebook or sys.stderr.isatty())


def progress_bar(
    items: Iterable[Any] | None = None, *, show: bool = True, total: int | None = None, **look: Any
) -> Any:
    """tqdm's bar of these items, or of so many; none where nobody watches or nothing is to do."""
    from tqdm.auto import tqdm

    if total is None and hasattr(items, "__len__"):
        total = len(items)
    hidden = not show or total == 0 or not are_shown()
    return tqdm(items, total=total, disable=hidden, **look)
