"""Which scores of a tile are the best: exact top-k that reads the scores hardly more than once.

A tile is reduced to the maxima of blocks of 64 scores. The k best scores of a row lie in the k
blocks of its largest maxima, so that only those blocks are read again. A ceiling costs as little:
only a block whose maximum reaches it can hold a score that is too high.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # scores per maximum; k * 64 and N / 64, both read again, balance at N = 4,096 k
QUERY_TILE = 256  # queries scored at once: enough for the matrix product to run at full rate
# Passages of one matrix product. How a product rounds may depend on its shape: as long as a part of
# a corpus starts at a multiple of this, its scores are those of the whole corpus, bit for bit.
PRODUCT = 16384
NOTHING = float("-inf")

Score = Callable[[slice, slice, Tensor], None]


class SearchResult(NamedTuple):
    """The k best passages of each query.

    ids: (Q, k) int64 rows of the corpus, -1 where fewer than k passages were allowed.
    scores: (Q, k) float32, -inf where the id is -1.
    """

    ids: Tensor
    scores: Tensor


def shape(queries: int, passages: int, buffer_mb: float) -> tuple[int, int]:
    """Queries and passages of the tile of a search: whole products where more than one fits.

    >>> shape(1000, 300_000, 256)
    (256, 262144)
    """
    rows = min(QUERY_TILE, queries)
    most = max(1, int(buffer_mb * 2**20) // (4 * rows * BLOCK))
    if most * BLOCK > PRODUCT:
        most -= most % (PRODUCT // BLOCK)
    return rows, min(most, -(-passages // BLOCK)) * BLOCK


class Tile:
    """The scores of some queries against some passages, and the maximum of each block of them.

    scores: (rows, blocks, BLOCK) float32.
    maxima: (rows, blocks) float32.

    Args:
        queries, passages: Q and N of the whole search; the tile is no larger.
        device: of the scores.
        buffer_mb: most mebibytes of scores.
    """

    def __init__(self, queries: int, passages: int, device: torch.device, buffer_mb: int) -> None:
        self.rows, self.columns = shape(queries, passages, buffer_mb)
        blocks = self.columns // BLOCK
        self._scores = torch.empty((self.rows, blocks, BLOCK), device=device)
        self._maxima = torch.empty((self.rows, blocks), device=device)

    def fill(self, score: Score, rows: slice, columns: slice) -> None:
        """Score the queries against the passages; places without a passage hold -inf."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        blocks = -(-width // BLOCK)
        self.scores, self.maxima = self._scores[:height, :blocks], self._maxima[:height, :blocks]
        flat = self._scores[:height].flatten(1)[:, : blocks * BLOCK]
        flat[:, width:] = NOTHING
        score(rows, columns, flat[:, :width])
        torch.amax(self.scores, 2, out=self.maxima)

    def drop(self, row: Tensor, column: Tensor) -> None:
        """Take single scores out."""
        row, column = row.to(self.maxima.device), column.to(self.maxima.device)
        block = column // BLOCK
        self.scores[row, block, column % BLOCK] = NOTHING
        self.maxima[row, block] = self.scores[row, block].amax(1)

    def cut(self, limit: Tensor) -> None:
        """Take out every score that is not below its row's limit."""
        reached = self.maxima >= limit[:, None]
        crowded = 8 * reached.sum(1) > reached.shape[1]  # a low limit: most of the row is read
        for row in crowded.nonzero()[:, 0].tolist():
            scores = self.scores[row]
            scores.masked_fill_(scores >= limit[row], NOTHING)
            torch.amax(scores, 1, out=self.maxima[row])
        row, block = (reached & ~crowded[:, None]).nonzero(as_tuple=True)
        kept = self.scores[row, block]
        kept.masked_fill_(kept >= limit[row, None], NOTHING)
        self.scores[row, block] = kept
        self.maxima[row, block] = kept.amax(1)

    def best(self, k: int, floor: float = NOTHING) -> SearchResult:
        """The k best above ``floor`` of each row, ordered by (-score, column).

        Where there are fewer, the rest hold -inf (or are missing, if the tile is no wider).
        """
        if self.maxima.shape[1] < 4 * (k + 1):  # the maxima leave too little out
            flat = self.scores.flatten(1)
            return self._ordered(*flat.topk(min(k + 1, flat.shape[1])), k, floor)
        maxima, block = self.maxima.topk(k + 1)
        chosen = block[:, :k]
        row = torch.arange(len(chosen), device=chosen.device)[:, None]
        values, place = self.scores[row, chosen].flatten(1).topk(k + 1)
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
