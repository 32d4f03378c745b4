"""Side-by-side timing: every side once a round, in an order that rotates; ratios round by round.

An absolute time says more of the machine's day than of the code. Two sides that run next to each
other meet the same day, so that what is kept and compared are the ratios of one round.
"""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Benchmark
from nvret.cost.calibration import Run, clock
from nvret.utils import machine, store


@dataclass
class Case:
    """One comparison: what is compared, and what each side took.

    Attributes:
        key: of its targets in `benchmarks.table`.
        name: for people, with its sizes.
        seconds: side -> seconds of each round.
        mebibytes: side -> memory above what was held before, if it was measured.
        work: units of work of one run, and their name, for rates.
        facts: anything else that a reader of the figures needs, such as a share or a recall.
    """

    key: str
    name: str
    seconds: dict[str, list[float]]
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


def run(benchmark: Benchmark, folder: Path, smoke: bool) -> None:
    """One benchmark in this process."""
    module = importlib.import_module(f"benchmarks.{benchmark.name}")
    before = load()
    save(benchmark, module.cases(smoke), folder, before)


def load() -> list[float]:
    """Processes that wanted to run in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def save(
    benchmark: Benchmark, cases: Sequence[Case], folder: Path, load_before: list[float]
) -> None:
    """Write the figures of one benchmark, and what they were taken on."""
    written = []
    for case in cases:
        values = vars(case).copy()
        targets = benchmark.targets[values.pop("key")]
        written.append(values | {"targets": [vars(target) for target in targets]})
    store.write_json(
        folder / f"{benchmark.name}.json",
        {
            "title": benchmark.title,
            "cases": written,
            "hardware": machine.hardware(),
            "versions": machine.versions(benchmark.packages),
            "load before": load_before,
            "load after": load(),
            "taken": time.strftime("%Y-%m-%d", time.gmtime()),
        },
    )
