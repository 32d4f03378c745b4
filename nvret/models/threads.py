"""Many small pieces of work on torch's threads: one piece a thread, instead of all on each piece.

An operator that is split over threads waits for the slowest of them before the next one starts,
hundreds of times a batch; where another process takes a core for a moment, all wait. Threads that
each have a batch of their own wait for each other once, at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_WORKERS = 8  # Python's part of the work runs in one thread at a time
Task = TypeVar("Task")
Result = TypeVar("Result")


def each(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
    """Tasks and their results, in the order of the tasks.

    torch's threads (``torch.get_num_threads``) are shared out among at most ``MOST_WORKERS``
    workers; torch's setting is as before at the end. Few tasks are under way at a time, so that
    neither tasks nor results pile up. A thread has its own grad and autocast modes: ``work`` must
    set them.

    >>> list(each(lambda n: n * n, range(3)))
    [(0, 0), (1, 1), (2, 4)]
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    if workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    pending: deque[tuple[Task, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, "nvret", torch.set_num_threads, (threads // workers,))
    try:
        for task in tasks:
            pending.append((task, pool.submit(work, task)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
