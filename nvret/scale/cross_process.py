"""One batch over several processes: each pair's in-batch negatives are the passages of all of them.

Each process encodes its own pairs. The passages' vectors are then exchanged with their gradients.
``DistributedDataParallel`` averages the processes' gradients, which gives the gradient of one
process with all of the pairs in its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import pad

from nvret.losses import FalseNegativeMask
from nvret.utils import processes


class Pool(NamedTuple):
    """The passages of all processes.

    vectors: (V, D), with gradient.
    rows: (V,) corpus rows; -1 where a process had fewer passages than another, and where the
        passage is in the pool already.
    offset: where this process's own passages begin, in their order.
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
    lengths = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor(len(rows), device=rows.device))
    longest = int(max(lengths))
    missing = longest - len(rows)
    padded = pad(rows, (0, missing), value=-1)
    all_rows = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(all_rows, padded)
    all_vectors = torch.cat(all_gather(pad(vectors, (0, 0, 0, missing))))
    return Pool(all_vectors, _first_only(torch.cat(all_rows)), rank * longest)


def _first_only(rows: Tensor) -> Tensor:
    """Replace each repetition of a row by -1.

    >>> _first_only(torch.tensor([3, 5, -1, 5, 4])).tolist()
    [3, 5, -1, -1, 4]
    """
    order = rows.argsort(stable=True)
    ordered = rows[order]
    repeated = torch.zeros_like(rows, dtype=torch.bool)
    repeated[order[1:]] = ordered[1:] == ordered[:-1]
    return rows.masked_fill(repeated, -1)


def known(relevance: FalseNegativeMask, queries: Tensor, listed: Tensor, pool: Pool) -> Tensor:
    """(B, V) bool, which passages of the pool are excluded as in-batch negatives of each pair.

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


def per_pair(padding: Tensor) -> Tensor:
    """What turns the processes' mean losses into the mean over the pairs of all of them.

    Padding has loss 0, yet counts in each process's mean.

    Args:
        padding: (B,) bool, as many in each process.
    """
    pairs = (~padding).sum()
    dist.all_reduce(pairs)
    return len(padding) * processes.world()[1] / pairs
