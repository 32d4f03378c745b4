"""Side-by-side timing: every side once a round, in an order that rotates; ratios round by round.

An absolute time says more of the machine's day than of the code. Two sides that run next to each
other meet the same day, so that what is kept and compared are the ratios of one round.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nvret.cost.calibration import Run, clock
from nvret.utils import machine, store


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            taken = clock(sides[name], device)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


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
