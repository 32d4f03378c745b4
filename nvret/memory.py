"""A memory bank: passages of earlier batches, with the vectors they had then, as negatives.

A large batch's worth of negatives at the price of a matrix product. The vectors are those of a
slightly older model and get no gradient; cross-batch memory rests on their drifting slowly.

Source: XBM, arXiv 1912.06798, section 3 (the queue, same encoder); the queue comes from MoCo, arXiv
1911.05722, whose momentum encoder is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """A queue of M passages, first in, first out; a state of buffers, so that a checkpoint has it.

    A passage stands in it once, with its newest vector: hard negatives recur in batch after batch,
    and would otherwise count as often as they recurred.

    Attributes:
        vectors: (M, D), without gradient; oldest first, after those places that are empty.
        rows: (M,) int64, corpus rows; -1 where a place is empty.

    >>> bank = MemoryBank(3, 2)
    >>> bank.push(torch.tensor([5, 7]), torch.eye(2))
    >>> bank.push(torch.tensor([5]), -torch.ones(1, 2))
    >>> bank.rows.tolist(), bank.vectors[1:].tolist()
    ([-1, 7, 5], [[0.0, 1.0], [-1.0, -1.0]])
    """

    def __init__(self, size: int, dimension: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dimension, dtype=dtype))
        self.register_buffer("rows", torch.full((size,), -1))

    def push(self, rows: Tensor, vectors: Tensor) -> None:
        """Put in a batch's (U,) distinct corpus rows and (U, D) vectors; the oldest leave.

        Of a batch of more than M passages the last M stay.
        """
        left = self.rows.masked_fill(torch.isin(self.rows, rows), -1)
        joined = torch.cat([left, rows])
        last = (joined >= 0).int().argsort(stable=True)[-len(self.rows) :]
        # new tensors, since the backward pass of this step still reads the old ones
        self.rows = joined[last]
        self.vectors = torch.cat([self.vectors, vectors.detach().to(self.vectors.dtype)])[last]

    def listed(self, rows: Tensor) -> Tensor:
        """(B, M) bool, whether a place holds one of pair b's (B, K) corpus rows."""
        return (self.rows == rows.unsqueeze(2)).any(1)
