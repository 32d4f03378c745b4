"""Which scores of a tile are the best: exact top-k that reads the scores hardly more than once.

Scores are computed in chunks that a cache holds, and each chunk is reduced at once to the maxima of
blocks of 64 scores. The k best scores of a row lie in the k blocks of its largest maxima, so that
only those blocks are read again. A ceiling costs as little: only a block whose maximum reaches it
can hold a score that is too high.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # scores per maximum; k * 64 and N / 64, both read again, balance at N = 4,096 k
QUERY_TILE = 256  # queries scored at once: enough for the matrix product to run at full rate
# Passages of a chunk: on a CPU 256 x 4,096 scores stay in a core's cache until their maxima are
# taken; a GPU needs work for all of its processors in one call.
CHUNK = {"cpu": 4096, "cuda": 65536}
NOTHING = float("-inf")

ScoreChunk = Callable[[slice, slice, Tensor], None]


class SearchResult(NamedTuple):
    """The k best passages of each query.

    ids: (Q, k) int64 rows of the corpus, -1 where fewer than k passages were allowed.
    scores: (Q, k) float32, -inf where the id is -1.
    """

    ids: Tensor
    scores: Tensor


class Tile:
    """The scores of some queries against some passages, and the maximum of each block of them.

    scores: (rows, chunks, blocks, BLOCK); chunk by chunk in memory, unless they are read whole.
    maxima: (rows, chunks * blocks).
    """

    def __init__(
        self, rows: int, chunks: int, blocks: int, device: torch.device, by_chunk: bool
    ) -> None:
        shape = (chunks, rows, blocks, BLOCK) if by_chunk else (rows, chunks, blocks, BLOCK)
        self._scores = torch.empty(shape, device=device)
        if by_chunk:
            self._scores = self._scores.transpose(0, 1)
        self._maxima = torch.empty((rows, chunks * blocks), device=device)
        self.by_chunk, self.rows, self.columns = by_chunk, rows, chunks * blocks * BLOCK

    @classmethod
    def fitting(
        cls,
        queries: int,
        passages: int,
        k: int,
        device: torch.device,
        buffer_mb: int = 256,
        chunk: int | None = None,
    ) -> Tile:
        """A tile of at most ``buffer_mb`` of scores, no wider than there are passages."""
        rows = min(QUERY_TILE, queries)
        most = max(1, int(buffer_mb * 2**20) // (4 * rows * BLOCK))  # blocks
        needed = min(most, -(-passages // BLOCK))
        chunk = chunk or CHUNK["cpu" if device.type == "cpu" else "cuda"]
        blocks = min(needed, max(1, chunk // BLOCK))
        chunks = min(-(-needed // blocks), most // blocks)
        by_chunk = chunks * blocks >= 4 * (k + 1)  # else the maxima leave too little out
        return cls(rows, chunks, blocks, device, by_chunk)

    def fill(self, score: ScoreChunk, rows: slice, columns: slice) -> None:
        """Score the queries against the passages; places without a passage hold -inf."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        step = self._scores.shape[2] * BLOCK
        self.scores = self._scores[:height, : -(-width // step)]
        self.maxima = self._maxima[:height, : self.scores.shape[1] * self.scores.shape[2]]
        maxima = self.maxima.unflatten(1, self.scores.shape[1:3])
        for chunk in range(self.scores.shape[1]):
            start = chunk * step
            stop = min(start + step, width)
            part = self.scores[:, chunk].flatten(1)
            part[:, stop - start :] = NOTHING
            score(
                rows,
                slice(columns.start + start, columns.start + stop),
                part[:, : stop - start],
            )
            torch.amax(self.scores[:, chunk], 2, out=maxima[:, chunk])

    def drop(self, row: Tensor, column: Tensor) -> None:
        """Take single scores out."""
        row, column = row.to(self.maxima.device), column.to(self.maxima.device)
        block = column // BLOCK
        chunk, within = block // self.scores.shape[2], block % self.scores.shape[2]
        self.scores[row, chunk, within, column % BLOCK] = NOTHING
        self.maxima[row, block] = self.scores[row, chunk, within].amax(1)

    def cut(self, limit: Tensor) -> None:
        """Take out every score that is not below its row's limit."""
        reached = self.maxima >= limit[:, None]
        if 8 * int(reached.sum()) > reached.numel():  # most of the tile would be copied
            for chunk in range(self.scores.shape[1]):
                part = self.scores[:, chunk]
                part.masked_fill_(part >= limit[:, None, None], NOTHING)
            torch.amax(self.scores, 3, out=self.maxima.unflatten(1, self.scores.shape[1:3]))
            return
        row, block = reached.nonzero(as_tuple=True)
        chunk, within = block // self.scores.shape[2], block % self.scores.shape[2]
        kept = self.scores[row, chunk, within]
        kept.masked_fill_(kept >= limit[row, None], NOTHING)
        self.scores[row, chunk, within] = kept
        self.maxima[row, block] = kept.amax(1)

    def best(self, k: int, floor: float = NOTHING) -> SearchResult:
        """The k best above ``floor`` of each row, ordered by (-score, column).

        Where there are fewer, the rest hold -inf (or are missing, if the tile is no wider).
        """
        if not self.by_chunk or self.maxima.shape[1] <= k:
            flat = self.scores.flatten(1)
            return self._ordered(*flat.topk(min(k + 1, flat.shape[1])), k, floor)
        maxima, block = self.maxima.topk(k + 1)
        chosen, blocks = block[:, :k], self.scores.shape[2]
        row = torch.arange(len(chosen), device=chosen.device)[:, None]
        values, place = self.scores[row, chosen // blocks, chosen % blocks].flatten(1).topk(k + 1)
        columns = chosen.gather(1, place // BLOCK) * BLOCK + place % BLOCK
        # The best score outside of these blocks may tie with the last one kept, never beat it
        values[:, k] = torch.maximum(values[:, k], maxima[:, k])
        return self._ordered(values, columns, k, floor)

    def _ordered(self, values: Tensor, columns: Tensor, k: int, floor: float) -> SearchResult:
        """Put the k best in order, given the k + 1 best; mend the rows that end in a tie.

        Which of several equal scores ``topk`` returns is not defined. It matters only where the
        last score that is kept equals the first that is not: such a row is read whole.
        """
        values = values.masked_fill(values <= floor, NOTHING)
        columns, by_column = columns[:, :k].sort(dim=1)
        ranked = values[:, :k].gather(1, by_column)
        ranked, by_score = ranked.sort(dim=1, descending=True, stable=True)
        columns = columns.gather(1, by_score)
        if values.shape[1] > k:
            last = ranked[:, -1:]
            tied = (values[:, k:] == last) & (last > NOTHING)
            wanted = (ranked == last).sum(1).tolist()
            for row in tied.nonzero()[:, 0].tolist():
                equal = (self.scores[row].flatten() == last[row]).nonzero()[:, 0]
                columns[row, k - wanted[row] :] = equal[: wanted[row]]
        return SearchResult(columns, ranked)
