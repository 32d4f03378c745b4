"""Seconds and memory of a run, on a CPU or a GPU."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

MEBIBYTE = 2**20
Run = Callable[[], Any]


def clock(run: Run, device: torch.device) -> float:
    """Seconds of a run; a GPU is waited for before the clock starts and before it stops.

    >>> clock(lambda: None, torch.device("cpu")) < 1
    True
    """
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def extra_memory(run: Run, device: torch.device) -> float:
    """Most mebibytes that a run adds to what was held before it: in the process, or on the GPU.

    The first run in a process counts: one after it finds memory that the allocator has kept.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run()  # held until it is counted
        highest = max(highest, process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    del result
    return (highest - before) / MEBIBYTE


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
