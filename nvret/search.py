"""Exact top-k search under a score ceiling, tiled on both axes, with one answer on every device.

A positive-aware mining method knows the highest score that a negative may have before the search
starts. So mining is one search, "the k best below the ceiling, leaving out these ids", and not
"the k' best, filtered afterwards", which runs dry where many candidates are too good.

The result is ordered by (-score, id). Equal scores are therefore no accident of the tile size, the
number of threads or the device. (The scores themselves are float32 dot products: another tile
size or device may round the last bit differently.)

The selection is the cheap part of the work only if it reads the scores few times. Each tile is
reduced to the maxima of blocks of 64 scores; the k best scores lie in the k blocks of the largest
maxima, so that only those blocks are gathered and sorted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvret.errors import NvretError

BLOCK = 64  # scores per block maximum: one cache line of maxima per 1,024 scores
QUERY_TILE = 256  # queries scored at once: enough for the matrix product to run at full rate
NOTHING = float("-inf")

ScoreBlock = Callable[[slice, slice], Tensor]


class SearchResult(NamedTuple):
    """The k best passages of each query.

    ids: (Q, k) int64 rows of the corpus, -1 where fewer than k passages were allowed.
    scores: (Q, k) float32, -inf where the id is -1.
    """

    ids: Tensor
    scores: Tensor


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
    queries, corpus = _matrix(queries, "queries"), _matrix(corpus, "corpus")
    if queries.shape[1] != corpus.shape[1]:
        raise NvretError(
            f"queries have {queries.shape[1]} dimensions but the corpus has {corpus.shape[1]}: "
            "both must come from the same encoder"
        )
    _check_finite(queries, "queries")
    _check_finite(corpus, "corpus")
    device = torch.device(device) if device is not None else queries.device
    buffer = torch.empty(0, device=device)

    def score_block(rows: slice, columns: slice) -> Tensor:
        nonlocal buffer
        left = queries[rows].to(device, torch.float32)
        right = corpus[columns].to(device, torch.float32)
        size = left.shape[0] * right.shape[0]
        if buffer.numel() < size:
            buffer = torch.empty(size, device=device)
        return torch.mm(left, right.T, out=buffer[:size].view(left.shape[0], right.shape[0]))

    return top_k_blocks(
        score_block,
        queries.shape[0],
        corpus.shape[0],
        k,
        ceiling=ceiling,
        exclude=exclude,
        device=device,
        buffer_mb=buffer_mb,
        progress=progress,
    )


def top_k_blocks(
    score_block: ScoreBlock,
    num_queries: int,
    num_passages: int,
    k: int,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
    buffer_mb: int = 256,
    progress: bool = False,
) -> SearchResult:
    """``top_k`` for any scorer that can score a tile of queries against a tile of passages.

    Args:
        score_block: takes a slice of queries and a slice of passages, returns their (rows, columns)
            float32 scores on ``device``; -inf means "not a candidate". The tensor is overwritten.
        num_queries, num_passages: Q and N.
        k, ceiling, exclude, buffer_mb, progress: as in ``top_k``.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise NvretError(f"k is {k!r}, expected a whole number of at least 1")
    device = torch.device(device)
    limits = _ceiling(ceiling, num_queries, device)
    excluded_rows, excluded_ids = _exclusions(exclude, num_queries, num_passages)

    rows_per_tile = max(1, min(QUERY_TILE, num_queries))
    columns_per_tile = max(BLOCK, int(buffer_mb * 2**20 / 4 / rows_per_tile) // BLOCK * BLOCK)
    ids = torch.full((num_queries, k), -1, dtype=torch.int64)
    scores = torch.full((num_queries, k), NOTHING)
    bar = tqdm(total=num_queries, desc="search", unit="query", disable=not progress)
    with bar:
        for start in range(0, num_queries, rows_per_tile):
            rows = slice(start, min(start + rows_per_tile, num_queries))
            first, last = np.searchsorted(excluded_rows, [rows.start, rows.stop])
            best: SearchResult | None = None
            for left in range(0, num_passages, columns_per_tile):
                columns = slice(left, min(left + columns_per_tile, num_passages))
                tile = score_block(rows, columns)
                if limits is not None:
                    tile.masked_fill_(tile >= limits[rows, None], NOTHING)
                if last > first:
                    inside = excluded_ids[first:last]
                    here = (inside >= columns.start) & (inside < columns.stop)
                    row = torch.from_numpy(excluded_rows[first:last][here] - rows.start)
                    column = torch.from_numpy(inside[here] - columns.start)
                    tile[row.to(device), column.to(device)] = NOTHING
                found = _select(tile, min(k, tile.shape[1]))
                best = _merge(best, SearchResult(found.ids + columns.start, found.scores), k)
            if best is not None:
                width = best.ids.shape[1]
                empty = best.scores == NOTHING
                ids[rows, :width] = best.ids.masked_fill(empty, -1).cpu()
                scores[rows, :width] = best.scores.cpu()
            bar.update(rows.stop - rows.start)
    return SearchResult(ids, scores)


def _select(tile: Tensor, k: int) -> SearchResult:
    """The k best of each row, ordered by (-score, column)."""
    width = tile.shape[1]
    whole = width // BLOCK * BLOCK
    if whole < 4 * BLOCK * (k + 1):  # few blocks: nothing is gained by their maxima
        return _order(tile, *tile.topk(min(k + 1, width)), k)
    maxima = tile[:, :whole].unflatten(1, (-1, BLOCK)).amax(2)
    block_max, block = maxima.topk(k + 1)
    columns = (block[:, :k, None] * BLOCK + torch.arange(BLOCK, device=tile.device)).flatten(1)
    rest = torch.arange(whole, width, device=tile.device).expand(tile.shape[0], -1)
    columns = torch.cat([columns, rest], 1)
    values, place = tile.gather(1, columns).topk(k + 1)
    # The best score outside of the gathered blocks may tie with the last one kept, never beat it
    values[:, k] = torch.maximum(values[:, k], block_max[:, k])
    return _order(tile, values, columns.gather(1, place), k)


def _order(tile: Tensor, values: Tensor, columns: Tensor, k: int) -> SearchResult:
    """Put the k best in order, given the k + 1 best; mend the rows that end in a tie.

    Which of several equal scores ``topk`` returns is not defined. It matters only where the last
    score that is kept equals the first that is not: such a row is sorted whole.
    """
    columns, by_column = columns[:, :k].sort(dim=1)
    ranked, by_score = values[:, :k].gather(1, by_column).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, by_score)
    if values.shape[1] > k:
        tied = (values[:, k] == ranked[:, -1]) & (ranked[:, -1] > NOTHING)
        if tied.any():
            full, position = tile[tied].sort(dim=1, descending=True, stable=True)
            ranked[tied], columns[tied] = full[:, :k], position[:, :k]
    return SearchResult(columns, ranked)


def _merge(best: SearchResult | None, found: SearchResult, k: int) -> SearchResult:
    """The k best of two results; every id of ``best`` is smaller than those of ``found``."""
    if best is None:
        return found
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


def _ceiling(ceiling: Tensor | np.ndarray | None, rows: int, device: torch.device) -> Tensor | None:
    if ceiling is None:
        return None
    limits = torch.as_tensor(ceiling, dtype=torch.float32, device=device)
    if limits.shape != (rows,):
        raise NvretError(f"ceiling has shape {tuple(limits.shape)}, expected ({rows},)")
    if torch.isnan(limits).any():
        row = int(torch.isnan(limits).nonzero()[0])
        raise NvretError(f"ceiling: row {row} is NaN, expected a number (inf for no ceiling)")
    return limits


def _exclusions(
    exclude: Sequence[Sequence[int]] | None, rows: int, passages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flatten the lists to (row, id) pairs in row order."""
    if exclude is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(exclude) != rows:
        raise NvretError(f"exclude has {len(exclude)} lists for {rows} queries, expected one each")
    lengths = np.fromiter((len(ids) for ids in exclude), np.int64, rows)
    row = np.repeat(np.arange(rows), lengths)
    flat = np.concatenate([np.asarray(ids, np.int64) for ids in exclude if len(ids)] or [row])
    outside = np.flatnonzero((flat < 0) | (flat >= passages))
    if len(outside):
        where = outside[0]
        raise NvretError(
            f"exclude: query row {row[where]} names passage {flat[where]}, "
            f"expected 0 to {passages - 1}"
        )
    return row, flat
