"""Exact top-k search under a score ceiling, tiled on both axes, with one answer on every device.

A positive-aware mining method knows the highest score that a negative may have before the search
starts. So mining is one search, "the k best below the ceiling, leaving out these ids", and not
"the k' best, filtered afterwards", which runs dry where many candidates are too good.

The result is ordered by (-score, id), so equal scores do not depend on the tile size, the number of
threads or the device. (The scores themselves are float32 dot products: another tile size or device
may round the last bit differently.)

Nearly all of the time is the matrix product's, because the scores are read hardly more than once. A
tile is reduced to the maxima of blocks of 64 scores; the k best scores of a row lie in the k blocks
of its largest maxima, and only those blocks are read again. A ceiling costs as little: only a block
whose maximum reaches it can hold a score that is too high.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvret.utils import products
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError

BLOCK = 64  # scores per maximum; k * 64 and N / 64, both read again, balance at N = 4,096 k
PARTS = 4  # of a block, each read again alone
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

    dtype = torch.float32

    def __init__(self, queries: int, passages: int, device: torch.device, buffer_mb: int) -> None:
        self.rows, self.columns = shape(queries, passages, buffer_mb)
        blocks = self.columns // BLOCK
        self._scores = torch.empty((self.rows, blocks, BLOCK), device=device, dtype=self.dtype)
        self._maxima = torch.empty((self.rows, blocks), device=device, dtype=self.dtype)

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
        maxima, block = self.maxima.topk(k + 1, sorted=False)
        row = torch.arange(len(block), device=block.device)[:, None]
        parts = self.scores[row, block].unflatten(2, (PARTS, -1)).flatten(1, 2)
        # Once more: a quarter of these blocks is left
        highest, part = parts.amax(2).topk(k + 1, sorted=False)
        values, place = parts[row, part].flatten(1).topk(k + 1)
        size = BLOCK // PARTS
        place = part.gather(1, place // size) * size + place % size
        columns = block.gather(1, place // BLOCK) * BLOCK + place % BLOCK
        # A score outside of these k + 1 parts may tie with the k-th best, never beat it
        outside = torch.maximum(maxima.amin(1), highest.amin(1))
        values[:, k] = torch.maximum(values[:, k], outside)
        return self._ordered(values, columns, k, floor)

    def _ordered(self, values: Tensor, columns: Tensor, k: int, floor: float) -> SearchResult:
        """Put equal scores of the k best in order, given the k + 1 best, the highest first; mend
        the rows that end in a tie.

        Which of several equal scores ``topk`` returns is not defined. It matters only where the
        last score that is kept equals the first that is not: such a row is read whole.
        """
        values = values.masked_fill(values <= floor, NOTHING)
        ranked, columns = values[:, :k], columns[:, :k]
        equal = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] > NOTHING)
        rows = equal.any(1).nonzero()[:, 0]
        some, by_column = columns[rows].sort(1)
        by_score = ranked[rows].gather(1, by_column).argsort(dim=1, descending=True, stable=True)
        columns[rows] = some.gather(1, by_score)
        if values.shape[1] > k:
            last = ranked[:, -1:]
            tied = (values[:, k:] == last) & (last > NOTHING)
            wanted = (ranked == last).sum(1).tolist()
            for row in tied.nonzero()[:, 0].tolist():
                equal = (self.scores[row].flatten() == last[row]).nonzero()[:, 0]
                columns[row, k - wanted[row] :] = equal[: wanted[row]]
        return SearchResult(columns, ranked)


def top_k(
    queries: Tensor | np.ndarray,
    corpus: Tensor | np.ndarray,
    k: int,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    device: str | torch.device | None = None,
    buffer_mb: int = 256,
    progress: bool = False,
) -> SearchResult:
    """The k passages of highest dot product for each query, exactly.

    Args:
        queries: (Q, D) vectors; unit length makes the scores cosines.
        corpus: (N, D) vectors of the passages; may be a memory map, and is read tile by tile.
        k: passages per query, at least 1.
        ceiling: (Q,) only scores strictly below it count; +inf is no ceiling.
        exclude: for each query, the ids (rows of the corpus) that it may not return.
        device: where the products are computed; default: where ``queries`` is.
        buffer_mb: most memory for the scores of one tile, at any number of passages.
        progress: show a bar.
    Returns:
        ids and scores, ordered by (-score, id), on the CPU.
    Raises:
        NvretError: shapes that do not match, k < 1, a NaN or infinite vector, a NaN ceiling, an
            excluded id outside of the corpus; each names the row.

    >>> passages = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> top_k(passages[:1], passages, k=2).ids
    tensor([[0, 1]])
    >>> top_k(passages[:1], passages, k=2, ceiling=torch.tensor([0.95])).ids  # 1.0 is too good
    tensor([[1, 2]])
    >>> top_k(passages[:1], passages, k=2, exclude=[[0, 2]]).ids
    tensor([[ 1, -1]])
    """
    queries, corpus = matrices(queries, corpus)
    device = torch.device(device) if device is not None else queries.device
    return top_k_scores(
        _product(queries, corpus, device),
        *(len(queries), len(corpus), k),
        ceiling=ceiling,
        exclude=exclude,
        device=device,
        buffer_mb=buffer_mb,
        progress=progress,
    )


def matrices(queries: Tensor | np.ndarray, corpus: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """(Q, D) and (N, D), checked as `top_k` says; arrays are not copied."""
    queries, corpus = _matrix(queries, "queries"), _matrix(corpus, "corpus")
    if queries.shape[1] != corpus.shape[1]:
        raise NvretError(
            f"queries have {queries.shape[1]} dimensions but the corpus has {corpus.shape[1]}: "
            "both must come from the same encoder"
        )
    _check_finite(queries, "queries")
    _check_finite(corpus, "corpus")
    return queries, corpus


def _product(queries: Tensor, corpus: Tensor, device: torch.device) -> Score:
    latest: tuple[slice, Tensor] | None = None

    def score(rows: slice, columns: slice, out: Tensor) -> None:
        nonlocal latest
        if latest is None or latest[0] != columns:  # the same passages for all queries in turn
            latest = None  # one of them at a time
            latest = columns, corpus[columns].to(device, torch.float32)
        vectors = queries[rows].to(device, torch.float32)
        for passages, scores in zip(latest[1].split(PRODUCT), out.split(PRODUCT, 1), strict=True):
            products.scores(vectors, passages, scores)

    return score


def top_k_scores(
    score: Score,
    num_queries: int,
    num_passages: int,
    k: int,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
    floor: float = NOTHING,
    most_passages: int = sys.maxsize,
    make_tile: Callable[..., Tile] = Tile,
    buffer_mb: int = 256,
    progress: bool = False,
) -> SearchResult:
    """``top_k`` for any scorer that can score some queries against some passages.

    Args:
        score: ``score(rows, columns, out)`` writes the scores of a slice of queries and a slice of
            passages into ``out``, float32 on ``device``; -inf means "not a candidate".
        num_queries, num_passages: Q and N.
        floor: only scores above it count.
        most_passages: how many passages ``score`` gets at once, at most. Its slices start at
            multiples of this number, if ``buffer_mb`` holds as many.
        make_tile: what holds the scores; called as `Tile` is.
        k, ceiling, exclude, buffer_mb, progress: as in ``top_k``.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise NvretError(f"k is {k!r}, expected a whole number of at least 1")
    device = torch.device(device)
    limit = limits(ceiling, num_queries, device)
    excluded = Exclusions(exclude, num_queries, num_passages)
    ids = torch.full((num_queries, k), -1, dtype=torch.int64)
    scores = torch.full((num_queries, k), NOTHING)
    if not num_queries or not num_passages:
        return SearchResult(ids, scores)

    tile = make_tile(num_queries, min(num_passages, most_passages), device, buffer_mb)
    total = num_queries * num_passages
    bar = progress_bar(total=total, desc="search", unit="score", unit_scale=True, show=progress)
    with bar:
        # Passages outside: a corpus that is larger than the memory is read once
        for left in range(0, num_passages, tile.columns):
            columns = slice(left, min(left + tile.columns, num_passages))
            for start in range(0, num_queries, tile.rows):
                rows = slice(start, min(start + tile.rows, num_queries))
                tile.fill(score, rows, columns)
                if exclude is not None:
                    tile.drop(*excluded.inside(rows, columns))
                if limit is not None:
                    tile.cut(limit[rows])
                found = tile.best(k, floor)
                best = SearchResult(found.ids.cpu() + left, found.scores.cpu())
                if left:
                    best = merge(SearchResult(ids[rows], scores[rows]), best, k)
                width = best.ids.shape[1]
                ids[rows, :width] = best.ids.masked_fill(best.scores == NOTHING, -1)
                scores[rows, :width] = best.scores
                bar.update((rows.stop - rows.start) * (columns.stop - columns.start))
    return SearchResult(ids, scores)


def merge(best: SearchResult, found: SearchResult, k: int) -> SearchResult:
    """The k best of two results; every id of ``best`` is smaller than those of ``found``."""
    scores, order = torch.cat([best.scores, found.scores], 1).sort(
        dim=1, descending=True, stable=True
    )
    ids = torch.cat([best.ids, found.ids], 1).gather(1, order[:, :k])
    return SearchResult(ids, scores[:, :k])


def _matrix(values: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(values, np.ndarray):
        with warnings.catch_warnings():  # a read-only memory map: it is never written to
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            values = torch.from_numpy(values)
    if values.ndim != 2 or not values.is_floating_point():
        raise NvretError(
            f"{name} has shape {tuple(values.shape)} and type {values.dtype}, "
            "expected a matrix (rows, dimensions) of floating-point numbers"
        )
    return values.detach()


def _check_finite(matrix: Tensor, name: str) -> None:
    step = 1 << 16
    for start in range(0, len(matrix), step):
        part = matrix[start : start + step]
        if not torch.isfinite(part.sum()):  # one pass; the sum of finite vectors may overflow too
            bad = (~torch.isfinite(part)).any(1).nonzero()
            if len(bad):
                row = start + int(bad[0])
                raise NvretError(
                    f"{name}: row {row} holds NaN or infinity, expected finite numbers"
                )


def limits(ceiling: Tensor | np.ndarray | None, rows: int, device: torch.device) -> Tensor | None:
    """(rows,) float32 of `top_k`'s ``ceiling``, checked as it says."""
    if ceiling is None:
        return None
    found = torch.as_tensor(ceiling, dtype=torch.float32, device=device)
    if found.shape != (rows,):
        raise NvretError(f"ceiling has shape {tuple(found.shape)}, expected ({rows},)")
    if (unknown := torch.isnan(found)).any():
        row = int(unknown.nonzero()[0])
        raise NvretError(f"ceiling: row {row} is NaN, expected a number (inf for no ceiling)")
    return found


class Exclusions:
    """Lists of passages by query, as (row, passage) pairs in row order."""

    def __init__(self, lists: Sequence[Sequence[int]] | None, rows: int, passages: int) -> None:
        self.row = self.passage = np.zeros(0, np.int64)
        if lists is None:
            return
        if len(lists) != rows:
            raise NvretError(f"exclude has {len(lists)} lists for {rows} queries, expected as many")
        lengths = np.fromiter(map(len, lists), np.int64, rows)
        self.row = np.repeat(np.arange(rows), lengths)
        filled = [np.asarray(ids, np.int64) for ids in lists if len(ids)]
        self.passage = np.concatenate(filled) if filled else self.passage
        outside = np.flatnonzero((self.passage < 0) | (self.passage >= passages))
        if len(outside):
            where = outside[0]
            raise NvretError(
                f"exclude: query row {self.row[where]} names passage {self.passage[where]}, "
                f"expected 0 to {passages - 1}"
            )

    def inside(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """The pairs of a tile, counted from its corner."""
        first, last = np.searchsorted(self.row, [rows.start, rows.stop])
        row, passage = self.row[first:last], self.passage[first:last]
        here = (passage >= columns.start) & (passage < columns.stop)
        row, column = row[here] - rows.start, passage[here] - columns.start
        return torch.from_numpy(row), torch.from_numpy(column)
