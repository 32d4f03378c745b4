"""One batch over several processes: each pair's in-batch negatives are the passages of all of them.

Each process encodes its own pairs. The passages' vectors are then exchanged with their gradients,
so that the mean of the processes' losses, which ``DistributedDataParallel`` takes of the gradients,
is the loss of one process with all of the pairs in its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from nvret.losses import FalseNegativeMask
from nvret.utils import processes


class Pool(NamedTuple):
    """The passages of all processes.

    vectors: (V, D), with gradient.
    rows: (V,) corpus rows; -1 where a process had fewer passages than another, and where the
        passage stands in the pool already.
    offset: where this process's own passages begin; they keep their order.
    """

    vectors: Tensor
    rows: Tensor
    offset: int


def pool(vectors: Tensor, rows: Tensor) -> Pool:
    """Exchange a batch's (U, D) vectors and (U,) corpus rows; U may differ between processes.

    Without other processes the pool is the batch.
    """
    rank, size = processes.world()
    if size == 1:
        return Pool(vectors, rows, 0)
    numbers = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(numbers, torch.tensor(len(rows), device=rows.device))
    most = int(max(numbers))
    missing = most - len(rows)
    padded = torch.nn.functional.pad(rows, (0, missing), value=-1)
    every = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(every, padded)
    joined = torch.cat(all_gather(torch.nn.functional.pad(vectors, (0, 0, 0, missing))))
    return Pool(joined, _first_only(torch.cat(every)), rank * most)


def _first_only(rows: Tensor) -> Tensor:
    """-1 instead of a row that has been there before.

    >>> _first_only(torch.tensor([3, 5, -1, 5, 4])).tolist()
    [3, 5, -1, -1, 4]
    """
    order = rows.argsort(stable=True)
    ordered = rows[order]
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[order[1:]] = ordered[1:] == ordered[:-1]
    return rows.masked_fill(again, -1)


def known(relevance: FalseNegativeMask, queries: Tensor, listed: Tensor, pool: Pool) -> Tensor:
    """(B, V) bool, which passages of the pool may not be in-batch negatives of a pair.

    Args:
        relevance: labels and guide.
        queries: (B,) query rows.
        listed: (B, 1 + K) corpus rows of the pairs' positives and mined negatives, -1 for none.
    """
    filled = pool.rows >= 0
    mask = ~filled.expand(len(queries), -1)
    mask = mask | (pool.rows[:, None, None] == listed).any(2).T
    rows = (queries, listed[:, 0], pool.rows[filled])
    mask[:, filled] |= torch.from_numpy(relevance(*(r.cpu().numpy() for r in rows))).to(mask.device)
    return mask
