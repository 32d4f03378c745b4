"""Side-by-side timing: every side once a round, in an order that rotates; ratios round by round.

An absolute time says more of the machine's day than of the code. Two sides that run next to each
other meet the same day, so that what is kept and compared are the ratios of one round.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from nvret import machine, store

Run = Callable[[], Any]

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Target:
    """What a ratio of two sides should be.

    Attributes:
        side, other: the ratio is ``side`` over ``other``, of times or of memory.
        most: the ratio that is allowed; a target "n times faster" is ``1 / n``.
        quantity: "seconds" or "mebibytes".
    """

    side: str
    other: str
    most: float
    quantity: str = "seconds"


@dataclass
class Case:
    """One comparison: what is compared, what each side took, what was aimed at.

    Attributes:
        name: for people, with its sizes.
        seconds: side -> seconds of each round.
        mebibytes: side -> memory above what was held before, if it was measured.
        work: units of work of one run, and their name, for rates.
        facts: anything else that a reader of the figures needs, such as a share or a recall.
    """

    name: str
    seconds: dict[str, list[float]]
    targets: list[Target] = field(default_factory=list)
    mebibytes: dict[str, float] = field(default_factory=dict)
    work: tuple[float, str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def interleaved(sides: dict[str, Run], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each side in each round.

    Args:
        sides: name -> what is timed. Its result is dropped before the next one starts.
        rounds: how often each side runs.
        warm_up: rounds before, that are not kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            _wait_for_device()
            start = time.perf_counter()
            sides[name]()
            _wait_for_device()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def memory(run: Run) -> float:
    """Most mebibytes of resident memory that a run adds to what the process held before it.

    The first run in a process counts: one after it finds memory that the allocator has kept.
    """
    process = psutil.Process()
    gc.collect()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return (max(highest, process.memory_info().rss) - before) / MEBIBYTE


def ratios(case: Case, side: str, other: str) -> np.ndarray:
    """Time of ``side`` over that of ``other``, round by round."""
    return np.array(case.seconds[side]) / np.array(case.seconds[other])


def load() -> list[float]:
    """Processes that wanted to run in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def save(
    path: Path,
    title: str,
    cases: Sequence[Case],
    packages: Sequence[str],
    load_before: list[float],
) -> None:
    """Write the figures of one benchmark, and what they were taken on."""
    store.write_json(
        path,
        {
            "title": title,
            "cases": [
                {
                    "name": case.name,
                    "seconds": case.seconds,
                    "mebibytes": case.mebibytes,
                    "work": case.work,
                    "facts": case.facts,
                    "targets": [vars(target) for target in case.targets],
                }
                for case in cases
            ],
            "hardware": machine.hardware(),
            "versions": machine.versions(packages),
            "load before": load_before,
            "load after": load(),
            "taken": time.strftime("%Y-%m-%d", time.gmtime()),
        },
    )


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
