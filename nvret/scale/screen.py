"""Exact search behind a screen: the same passages, with nearly all of the products in bfloat16.

A processor with units for bfloat16 (AMX, a GPU's tensor cores) multiplies several times as fast in
it as in float32. So all passages are scored in bfloat16. How far such a score can be off is known,
and with it the least that one of the k best can have there. Whatever has more is scored again from
the float32 vectors, so that no passage is missing. Where that is too much for a query, it is
searched in float32.

Source of the bound: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvret import search
from nvret.scale import fused
from nvret.search import NOTHING, SearchResult
from nvret.teachers import DenseScorer
from nvret.utils.store import fingerprint

DOUBTFUL = 64  # blocks in which a passage may or may not be below the ceiling, at most
CROWDED = 16  # as many blocks as are looked for, times this, are not read again
UNIT, UNIT32 = 2.0**-8, 2.0**-24  # most that rounding moves a number in bfloat16, in float32
TINY = 2.0**-100  # more than is lost where numbers are too small to be rounded so
CACHED = 1024  # vectors that are rounded at once
TOGETHER = 8  # queries whose passages are read at once
QUERY_TILE = 2048  # queries for which a kernel reads the passages once
MOST_PASSAGES = 1 << 20  # of its tile, of which a GPU holds the vectors
AGAIN = 4096  # blocks that are multiplied again at once
PAIRS = 1 << 17  # scored at once on a GPU


def is_fast(device: str | torch.device) -> bool:
    """Whether a device has units for products in bfloat16, which add up in float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)
    return device.type == "cpu" and has_amx()


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
    """``nvret.search.top_k`` behind a screen, where `is_fast`; as it is elsewhere.

    Scores are computed in float64 and rounded once. Plain ``top_k``'s may differ from them in the
    last bits, and passages whose scores differ by no more may stand in another order.

    >>> passages = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
    >>> bool((top_k(passages, passages, 3).ids[:, 0] == torch.arange(100)).all())
    True
    """
    queries, corpus = search.matrices(queries, corpus)
    device = torch.device(device) if device is not None else queries.device
    options = {"ceiling": ceiling, "exclude": exclude, "device": device}
    options |= {"buffer_mb": buffer_mb, "progress": progress}
    if not is_fast(device) or len(corpus) < 4 * search.BLOCK * (k + DOUBTFUL):
        return search.top_k(queries, corpus, k, **options)
    if fused.is_there(device):
        options["make_tile"] = FusedTile
    with _sums_in_float32():
        return screened(queries, corpus, k, Screen(queries, corpus, device), **options)


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Also of the parts of a product that a GPU splits, which torch lets it add up in bfloat16."""
    on_gpu = torch.backends.cuda.matmul
    before = on_gpu.allow_bf16_reduced_precision_reduction
    on_gpu.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        on_gpu.allow_bf16_reduced_precision_reduction = before


class Screen:
    """Scores of some passages in bfloat16, as ``nvret.search.top_k_scores`` asks for them.

    Attributes:
        queries, passages: (Q, D), and (N, D) of the latest passages, in bfloat16.
        exact: (N, D) of the latest passages as they are, on the device.
        errors: (Q,) float32, most that a score of the latest passages is off before it is rounded.

    |q·c - q'·c'| <= |q - q'| |c| + |q'| |c - c'| for the rounded vectors q', c'; to which comes
    what is lost when D products are added up in float32.
    """

    def __init__(self, queries: Tensor, corpus: Tensor, device: torch.device) -> None:
        self.corpus, self.device, self.columns = corpus, device, None
        self.queries, self._lost, self._own = _rounded(queries, device)

    def read(self, columns: slice) -> None:
        """Round these passages, unless they are the latest."""
        if self.columns == columns:  # the same passages for all queries in turn
            return
        self.passages = self.exact = None  # those of one tile at a time
        self.exact = self.corpus[columns].to(self.device)
        self.passages, lost, own = _rounded(self.exact, self.device)
        self.columns = columns
        lost, own, rounded = lost.max(), own.max(), self._own + self._lost
        sums = 2 * self.queries.shape[1] * UNIT32 * rounded * (own + lost)
        self.errors = 1.0001 * (self._lost * own + rounded * lost + sums)

    def __call__(self, rows: slice, columns: slice, out: Tensor) -> None:
        self.read(columns)
        torch.mm(self.passages, self.queries[rows].T, out=out.T)


def _rounded(vectors: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) in bfloat16; (N,) float32 lengths of what that takes off a vector, and of its own."""
    rounded = torch.empty(vectors.shape, dtype=torch.bfloat16, device=device)
    lost, own = torch.empty((2, len(vectors)), device=device)
    for start in range(0, len(vectors), CACHED):
        part = slice(start, start + CACHED)
        exact = vectors[part].to(device, torch.float32)
        rounded[part] = exact
        torch.linalg.vector_norm(exact, dim=1, out=own[part])
        torch.linalg.vector_norm(exact - rounded[part], dim=1, out=lost[part])
    return rounded, lost, own


def screened(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    score: Screen,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
    make_tile: Callable[..., ScreenTile] | None = None,
    **options: Any,
) -> SearchResult:
    """The k best by their exact scores, looked for where approximate scores are high.

    Args:
        queries, corpus: (Q, D) and (N, D).
        k, ceiling, exclude, device: as of ``nvret.search.top_k``.
        score: approximate scores, each off by at most ``score.errors`` of its query and the share
            `UNIT` of itself.
        make_tile: what holds them; None: a `ScreenTile`.
        options: of ``nvret.search.top_k_scores``.
    """
    limits = torch.full((len(queries),), torch.inf) if ceiling is None else ceiling
    limits = torch.as_tensor(limits, dtype=torch.float32, device=device)
    given_up = torch.zeros(len(queries), dtype=torch.bool)
    options |= {"device": device}
    found = search.top_k_scores(
        *(score, len(queries), len(corpus), k),
        ceiling=ceiling,
        exclude=exclude,
        make_tile=partial(make_tile or ScreenTile, queries, limits, given_up),
        **options,
    )
    if len(rows := given_up.nonzero()[:, 0]):
        left = None if exclude is None else [exclude[row] for row in rows.tolist()]
        options |= {"ceiling": limits[rows], "exclude": left}
        found.ids[rows], found.scores[rows] = search.top_k(queries[rows], corpus, k, **options)
    return found


class ScreenTile(search.Tile):
    """Approximate scores, of which the k best by exact scores are read.

    A passage's scores lie together, since maxima over passages are then the faster ones to take.

    Args:
        queries: (Q, D).
        limits: (Q,) exact scores are below them.
        given_up: (Q,) bool, set where a query has too many passages to score again.
        shape: as of ``nvret.search.Tile``.
    """

    dtype = torch.bfloat16

    def __init__(self, queries: Tensor, limits: Tensor, given_up: Tensor, *shape: Any) -> None:
        super().__init__(*shape)
        self.queries, self.limits, self.given_up = queries, limits, given_up

    def fill(self, score: Screen, rows: slice, columns: slice) -> None:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        blocks = -(-width // search.BLOCK)
        flat = self._scores.flatten()[: blocks * search.BLOCK * height].view(-1, height)
        flat[width:] = NOTHING
        score(rows, columns, flat[:width].T)
        by_passage = flat.view(blocks, search.BLOCK, height)
        self.scores, self.maxima = by_passage.permute(2, 0, 1), by_passage.amax(1).T.contiguous()
        self.place, self.off, self.extra = rows, score.errors[rows], 0
        self.exact = score.exact

    def cut(self, limit: Tensor) -> None:
        """Take out what is not below its row's limit for sure."""
        super().cut(_ruled_out(limit, self.off))

    def read(self, row: Tensor, block: Tensor) -> Tensor:
        """(P, BLOCK) approximate scores of the passages of some blocks."""
        return self.scores[row, block]

    def best(self, k: int, floor: float = NOTHING) -> SearchResult:
        limit, off, maxima = self.limits[self.place], self.off, self.maxima.float()
        most = min(k + DOUBTFUL, maxima.shape[1])
        # The k-th best is no worse than the k-th of the blocks that are below the limit for sure.
        # `_lowest` twice: what the k-th may score, and what a passage that scores so may have here
        doubtful = (maxima > _lowest(limit, off)[:, None]).sum(1) + self.extra
        place = (doubtful + k - 1).clamp_max(most - 1)
        kth = maxima.topk(most).values.gather(1, place[:, None])[:, 0]
        least = _lowest(_lowest(kth, off), off).clamp_min(torch.finfo(torch.float32).min)
        reached = maxima >= least[:, None]
        crowded = (doubtful + k > most) | (reached.sum(1) > CROWDED * most)
        self.given_up[self.place] |= crowded.cpu()
        row, block = (reached & ~crowded[:, None]).nonzero(as_tuple=True)
        hit, column = (self.read(row, block) >= least[row, None]).nonzero(as_tuple=True)
        row, column = row[hit], block[hit] * search.BLOCK + column
        scored = _scored_together if self.exact.is_cuda else _scored
        scores = scored(self.queries[self.place].to(row.device), self.exact, row, column)
        allowed = scores < limit[row]
        return _best(row[allowed], column[allowed], scores[allowed], len(maxima), k)


class FusedTile(ScreenTile):
    """Block maxima of approximate scores, and the scores of some blocks when they are asked for.

    Args: as of `ScreenTile`.
    """

    @staticmethod
    def shape(queries: int, passages: int, buffer_mb: float) -> tuple[int, int]:
        """Queries and passages of a tile whose maxima take so many mebibytes."""
        rows = min(QUERY_TILE, queries)
        most = max(1, int(buffer_mb * 2**20) // (4 * rows)) * search.BLOCK
        blocks = -(-min(passages, most, MOST_PASSAGES) // search.BLOCK)
        return rows, blocks * search.BLOCK

    def __init__(self, queries: Tensor, limits: Tensor, given_up: Tensor, *shape: Any) -> None:
        self.queries, self.limits, self.given_up = queries, limits, given_up
        self.rows, self.columns = self.shape(*shape[:2], shape[3])

    def fill(self, score: Screen, rows: slice, columns: slice) -> None:
        score.read(columns)
        self.score, self.place = score, rows
        self.off, self.exact = score.errors[rows], score.exact
        self.dropped = torch.zeros(0, 2, dtype=torch.int64, device=score.device)
        limit = _ruled_out(self.limits[rows], self.off)
        self.maxima = fused.block_maxima(score.queries[rows], score.passages, limit)
        self.extra = torch.zeros(len(self.maxima), dtype=torch.int64, device=score.device)

    def drop(self, row: Tensor, column: Tensor) -> None:
        """Single scores that may not count: of as many blocks the maximum may be theirs."""
        self.dropped = torch.stack([row, column], 1).to(self.extra.device)
        self.extra = torch.bincount(self.dropped[:, 0], minlength=len(self.extra))

    def cut(self, limit: Tensor) -> None:
        """The kernel has done it."""

    def read(self, row: Tensor, block: Tensor) -> Tensor:
        passages, queries = self.score.passages, self.score.queries[self.place]
        ids = block[:, None] * search.BLOCK + torch.arange(search.BLOCK, device=block.device)
        parts = []
        for some, own in zip(row.split(AGAIN), ids.split(AGAIN), strict=True):
            inside = own.clamp_max(len(passages) - 1)
            scores = torch.bmm(passages[inside], queries[some][:, :, None])[:, :, 0]
            parts.append(scores.masked_fill(own >= len(passages), NOTHING))
        scores = torch.cat(parts) if parts else self.maxima.new_zeros(0, search.BLOCK)
        width = len(passages) + search.BLOCK
        dropped = self.dropped[:, 0] * width + self.dropped[:, 1]
        return scores.masked_fill(torch.isin(row[:, None] * width + ids, dropped), NOTHING)


def _ruled_out(limit: Tensor, errors: Tensor) -> Tensor:
    """The least score that nothing below its row's limit can have here."""
    return _highest(limit, errors).nextafter(torch.tensor(torch.inf, device=limit.device))


def _highest(approximate: Tensor, errors: Tensor) -> Tensor:
    """The highest score of which this can be the approximation, and the other way round."""
    highest = approximate + errors + 1.05 * UNIT * (approximate.abs() + errors) + TINY
    return torch.where(approximate.isinf(), approximate, highest)


def _lowest(approximate: Tensor, errors: Tensor) -> Tensor:
    """Likewise the lowest."""
    return -_highest(-approximate, errors)


def _scored(queries: Tensor, corpus: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P,) float32 scores of pairs of a query and a passage, rounded once; ``rows`` rise."""
    counts = torch.bincount(rows, minlength=len(queries))
    scores = [torch.empty(0)]
    parts = queries.double().split(TOGETHER), counts.split(TOGETHER)
    for some, numbers in zip(*parts, strict=True):
        own, columns = columns.tensor_split([int(numbers.sum())])
        vectors = corpus.index_select(0, own).double()
        each = zip(vectors.split(numbers.tolist()), some, strict=True)
        scores += [passages.mv(query) for passages, query in each]
    return torch.cat(scores).float()


def _scored_together(queries: Tensor, corpus: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same where many small products are slow: on a GPU."""
    scores = [torch.empty(0, device=corpus.device)]
    for row, column in zip(rows.split(PAIRS), columns.split(PAIRS), strict=True):
        scores.append((queries[row].double() * corpus[column].double()).sum(1).float())
    return torch.cat(scores)


def _best(rows: Tensor, columns: Tensor, scores: Tensor, number: int, k: int) -> SearchResult:
    """The k best of each of so many rows; ``columns`` rise within a row."""
    order = scores.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, every = rows[order], torch.arange(max(number, len(rows)), device=rows.device)
    rank = every[: len(rows)] - torch.searchsorted(rows, every[:number])[rows]
    ids = torch.full((number, k), -1, device=rows.device)
    found = torch.full((number, k), NOTHING, device=rows.device)
    kept = rank < k
    place = rows[kept], rank[kept]
    ids[place], found[place] = columns[order][kept], scores[order][kept]
    return SearchResult(ids, found)


class Screened:
    """In the place of an index: how to search behind a screen."""

    def scorer(self, name: str, key: list[Any], *vectors: Any) -> ScreenedScorer:
        """As ``nvret.teachers.dense_scorer``."""
        return ScreenedScorer(name, fingerprint(*key, "screen"), *vectors)


class ScreenedScorer(DenseScorer):
    """A teacher's vectors, searched behind a screen."""

    search = staticmethod(top_k)
