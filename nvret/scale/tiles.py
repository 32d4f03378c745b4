"""Exact top-k search where scores are cheap: each thread has a tile that stays in its core's cache.

A dense product takes so long that one operator at a time may have all threads, and what comes after
it hardly counts. BM25's scores are there in a few microseconds a query. So each thread has some
queries and goes through all steps with them, before their scores leave the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvret import search
from nvret.models import batching
from nvret.search import NOTHING, SearchResult
from nvret.utils.bars import progress_bar

SCORES = 1 << 19  # of a tile, if it is not to have fewer rows than these
ROWS = 8, 32
TASK = 512  # queries of a thread at a time
LOW, SIGN = 0xFFFFFFFF, 0x7FFFFFFF  # bits of a place, and of a float but for its sign


def top_k_scores(
    score: search.Score,
    num_queries: int,
    num_passages: int,
    k: int,
    *,
    ceiling: np.ndarray | Tensor | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    progress: bool = False,
    **options: Any,
) -> SearchResult:
    """``nvret.search.top_k_scores`` on the CPU; ``score`` is called by several threads at once."""
    limit = search.limits(ceiling, num_queries, torch.device("cpu"))
    search.Exclusions(exclude, num_queries, num_passages)  # a fault is named by its row of all

    def find(rows: slice) -> SearchResult:
        def own(some: slice, columns: slice, out: Tensor) -> None:
            score(slice(rows.start + some.start, rows.start + some.stop), columns, out)

        return search.top_k_scores(
            *(own, rows.stop - rows.start, num_passages, k),
            ceiling=None if limit is None else limit[rows],
            exclude=None if exclude is None else exclude[rows],
            make_tile=Tile,
            **options,
        )

    ends = [*range(0, max(1, num_queries), TASK), num_queries]
    tasks = [slice(*pair) for pair in pairwise(ends)]
    total = num_queries * num_passages
    bar = progress_bar(total=total, desc="search", unit="score", unit_scale=True, show=progress)
    with bar:
        found = []
        for rows, one in batching.in_threads(find, tasks):
            found.append(one)
            bar.update((rows.stop - rows.start) * num_passages)
    return SearchResult(*map(torch.cat, zip(*found, strict=True)))


class Tile(search.Tile):
    """Some rows of scores, few enough for a core's cache.

    ``torch.topk`` looks at one score after another; NumPy sorts and partitions whole numbers by
    vector instructions. So a score and its place become one number.
    """

    def __init__(self, queries: int, passages: int, device: torch.device, buffer_mb: int) -> None:
        fewest, most = ROWS
        rows = max(fewest, min(most, SCORES // passages))
        super().__init__(min(rows, queries), passages, device, buffer_mb)

    def best(self, k: int, floor: float = NOTHING) -> SearchResult:
        """As there. The k blocks that come first by (-maximum, number) hold the k best, none of
        which is below the lowest of these maxima: each has a score that comes before all others."""
        maxima, scores = self.maxima.numpy(), self.scores.numpy()
        rows, blocks = maxima.shape
        chosen = _numbers(maxima, np.arange(blocks))
        least = np.full(rows, np.nextafter(np.float32(floor), np.float32(np.inf)))
        if k <= blocks:
            chosen.partition(k - 1, axis=1)
        block, highest = _read(chosen[:, :k])
        if k <= blocks:
            least = np.maximum(least, highest.min(1))
        some = scores[np.arange(rows)[:, None], block].reshape(rows, -1)
        place = np.flatnonzero(some >= least[:, None])
        which = place // search.BLOCK
        row, column = which // block.shape[1], block.ravel()[which] * search.BLOCK
        counts = np.bincount(row, minlength=rows)
        # A row of numbers for each row, filled up with what comes last
        numbers = np.full((rows, max(k, counts.max())), LAST)
        rank = np.arange(len(row)) - (counts.cumsum() - counts)[row]
        numbers[row, rank] = _numbers(some.ravel()[place], column + place % search.BLOCK)
        numbers.sort(axis=1)
        return SearchResult(*map(torch.from_numpy, _read(numbers[:, :k])))


def _numbers(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64, whose order is that of (-score, place); places from 0 to 2³² - 1.

    The bits of a float are those of a whole number in the same order, but for its sign.
    """
    bits = np.subtract(np.float32(0), scores).view(np.int32)  # no -0: it equals 0
    order = bits ^ (bits >> 31 & SIGN)
    return order.astype(np.int64) << 32 | places


def _read(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and scores."""
    order = (numbers >> 32).astype(np.int32)
    bits = order ^ (order >> 31 & SIGN)
    return numbers & LOW, np.subtract(np.float32(0), bits.view(np.float32))


LAST = _numbers(np.float32([NOTHING]), np.int64(LOW))[0]
