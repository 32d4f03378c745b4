"""What several test files use. Test files import from here, never from each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
from filelock import FileLock

FULL = 100  # examples of the profile ``thorough``, at which a test runs as many as it states
SHARED = "NVRET_TESTS_SHARED"  # a folder of one run of pytest, for all of its workers


def examples(number: int, **options: object) -> hypothesis.settings:
    """Hypothesis's settings for a test: ``number`` examples at full depth, fewer in ``ci``."""
    share = hypothesis.settings.default.max_examples / FULL
    return hypothesis.settings(max_examples=max(10, round(number * share)), **options)


def shared(name: str, build: Callable[[Path], object]) -> Path:
    """A folder that the first worker builds, and that all workers only read.

    Args:
        name: of the folder.
        build: writes into the folder that it is given.
    """
    root = Path(os.environ[SHARED])
    target, partial = root / name, root / f"{name}.partial"
    with FileLock(root / f"{name}.lock"):
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)  # of a worker that failed
            partial.mkdir()
            build(partial)
            partial.rename(target)
    return target
