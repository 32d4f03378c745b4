"""A product and the maxima of its blocks in one kernel for a GPU, so that no score is written.

A product of bfloat16 matrices takes a GPU about as long as to write its scores and read them again.
The kernel keeps a tile of them in registers, takes out what its query's ceiling rules out, and
writes the maximum of each block of passages: a sixty-fourth. `nvret.scale.screen` multiplies the
few blocks again that can hold one of the k best.

Written in Triton, which comes with torch for CUDA.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from nvret import search

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a product that one program keeps in registers
WARPS, STAGES = 8, 3  # of such a program; its loads are ahead of the product by the second


def is_there(device: str | torch.device) -> bool:
    """Whether the kernel is for this device, and what compiles it is installed."""
    if torch.device(device).type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:  # there is none for Windows
        return False
    return True


def block_maxima(queries: Tensor, passages: Tensor, limits: Tensor) -> Tensor:
    """(Q, ceil(N / BLOCK)) float32, the highest score below its query's limit in each block.

    Args:
        queries, passages: (Q, D) and (N, D) of one type, bfloat16 for speed.
        limits: (Q,) float32.
    """
    count, blocks = len(queries), -(-len(passages) // search.BLOCK)
    maxima = torch.empty((count, blocks), device=queries.device)
    # Programs that follow each other share their passages, which are the larger matrix
    grid = -(-count // ROWS), -(-len(passages) // COLUMNS)
    _kernel()[grid](
        *(queries.contiguous(), passages.contiguous(), limits.contiguous(), maxima),
        *(count, len(passages), blocks),
        D=queries.shape[1], ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, BLOCK=search.BLOCK,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return maxima


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def maxima_below(
        queries, passages, limits, maxima, count, size, blocks,
        D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, D, DEPTH):
            place = start + tl.arange(0, DEPTH)
            inside = place < D
            left = queries + row[:, None] * D + place[None, :]
            left = tl.load(left, (row < count)[:, None] & inside[None, :], 0.0)
            right = passages + column[None, :] * D + place[:, None]
            right = tl.load(right, (column < size)[None, :] & inside[:, None], 0.0)
            scores = tl.dot(left, right, scores)
        limit = tl.load(limits + row, row < count, 0.0)
        allowed = (column < size)[None, :] & (scores < limit[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
        highest = tl.max(tl.reshape(scores, (ROWS, COLUMNS // BLOCK, BLOCK)), 2)
        block = tl.program_id(1) * (COLUMNS // BLOCK) + tl.arange(0, COLUMNS // BLOCK)
        there = (row < count)[:, None] & (block < blocks)[None, :]
        tl.store(maxima + row[:, None].to(tl.int64) * blocks + block[None, :], highest, there)

    return maxima_below
