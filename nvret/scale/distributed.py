"""One search by several processes, with exact merges.

Each process searches its part, the results are exchanged, and every process has the whole result,
which is that of a single process.

Source of the collectives: torch.distributed (gloo on a CPU, NCCL on GPUs).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nvret import search as single
from nvret.search import PRODUCT, SearchResult
from nvret.utils import processes

GATHERED = 65536  # queries whose results are exchanged at a time


def top_k(
    queries: Tensor | np.ndarray,
    corpus: Tensor | np.ndarray,
    k: int,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    unit: int = PRODUCT,
    search: Callable[..., SearchResult] = single.top_k,
    **options: Any,
) -> SearchResult:
    """``nvret.search.top_k``, each process searching its part of the corpus.

    The parts' results are exchanged and merged; each process returns the whole result, which is
    that of a single process: the order is (-score, id), and the scores of a block of ``unit``
    passages come from a product of the same shape.

    Args:
        queries, corpus, k, ceiling, exclude, options: as ``nvret.search.top_k``; the same in all
            processes. A memory-mapped corpus is read by each process in its own part only.
        unit: passages that stay together; one process searches a corpus of fewer.
        search: what each process does.
    """
    if processes.world()[1] == 1:
        return search(queries, corpus, k, ceiling=ceiling, exclude=exclude, **options)
    part = processes.shard(len(corpus), unit)
    if exclude is not None:
        exclude = [_inside(np.asarray(ids, np.int64), part) for ids in exclude]
    ids, scores = search(queries, corpus[part], k, ceiling=ceiling, exclude=exclude, **options)
    ids = torch.where(ids < 0, -1, ids + part.start)
    for start in range(0, len(ids), GATHERED):
        rows = slice(start, start + GATHERED)
        ids[rows], scores[rows] = _merged(ids[rows], scores[rows], k)
    return SearchResult(ids, scores)


def by_query(queries: int, search_rows: Callable[[slice], SearchResult]) -> SearchResult:
    """A search whose queries, and not its passages, are divided; each process returns the whole.

    Args:
        queries: Q.
        search_rows: a slice of the queries -> their result.
    """
    parts = processes.gather_objects(search_rows(processes.shard(queries)))
    return SearchResult(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _inside(ids: np.ndarray, part: slice) -> np.ndarray:
    return ids[(ids >= part.start) & (ids < part.stop)] - part.start


def _merged(ids: Tensor, scores: Tensor, k: int) -> SearchResult:
    """The k best of all processes' results, whose ids rise with the process's rank."""
    parts = map(SearchResult, _gathered(ids), _gathered(scores))
    return functools.reduce(lambda best, part: single.merge(best, part, k), parts)


def _gathered(part: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(part) for _ in range(processes.world()[1])]
    dist.all_gather(parts, part.contiguous())
    return parts
