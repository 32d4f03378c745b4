"""Exact search behind a screen: the same passages, with nearly all of the products in bfloat16.

A processor with units for bfloat16 (AMX, a GPU's tensor cores) multiplies several times as fast in
it as in float32. So all passages are scored in bfloat16, and of each query the k best and some more
once again, from the float32 vectors. How far a score in bfloat16 can be off is known. If the k-th
best beats whatever the screen left out, however far off that was, no passage is missing. A query of
which this cannot be said is screened again, deeper, and at last searched in float32.

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
from nvret.search import NOTHING, SearchResult
from nvret.teachers import DenseScorer
from nvret.utils.store import fingerprint

MORE = (32, 512)  # passages beyond k that are scored again; then, where they are too few
UNIT, UNIT32 = 2.0**-8, 2.0**-24  # most that rounding moves a number in bfloat16, in float32
SCORED = 64  # queries that are scored again at once


def is_fast(device: str | torch.device) -> bool:
    """Whether a device has units for products in bfloat16, which add up in float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


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

    Args:
        queries, corpus, k, ceiling, exclude, device, buffer_mb, progress: as there.

    >>> passages = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
    >>> bool((top_k(passages, passages, 3).ids[:, 0] == torch.arange(100)).all())
    True
    """
    queries, corpus = search.matrices(queries, corpus)
    device = torch.device(device) if device is not None else queries.device
    options = {"ceiling": ceiling, "exclude": exclude, "device": device, "progress": progress}
    options["buffer_mb"] = buffer_mb
    if not is_fast(device):
        return search.top_k(queries, corpus, k, **options)
    approximate = partial(search.product, corpus=corpus, device=device, dtype=torch.bfloat16)
    with _sums_in_float32():
        return screened(queries, corpus, k, approximate, error(queries, corpus), **options)


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


def error(queries: Tensor, corpus: Tensor) -> Tensor:
    """(Q,) float64: most that a product in bfloat16 is off before it is rounded itself.

    |q·c - q'·c'| <= |q - q'| |c| + |q'| |c - c'| for the rounded vectors q', c'; to which comes
    what is lost when d products are added up in float32.
    """
    lost, own = _lengths(queries)
    parts = [_lengths(part) for part in corpus.split(search.PRODUCT)]
    most_lost, most = (torch.cat(each).max() for each in zip(*parts, strict=True))
    rounded = own + lost
    added = 2 * queries.shape[1] * UNIT32 * rounded * (most + most_lost)
    return lost * most + rounded * most_lost + added


def _lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float64 each: the length of what bfloat16 takes off a vector, and its own."""
    off = vectors - vectors.bfloat16().to(vectors.dtype)
    return off.norm(dim=1).double() * (1 + 1e-5), vectors.norm(dim=1).double() * (1 + 1e-5)


def screened(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    approximate: Callable[[Tensor], search.Score],
    errors: Tensor,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    more: Sequence[int] = MORE,
    **options: Any,
) -> SearchResult:
    """The k best by their float64 scores, looked for where approximate scores are high.

    Args:
        queries, corpus: (Q, D) and (N, D).
        k, ceiling, exclude: as of ``nvret.search.top_k``.
        approximate: some of the queries -> their scores, as ``nvret.search.top_k_scores`` asks.
        errors: (Q,) float64, most that such a score is off, beside the share `UNIT` of itself.
        more: how many beyond k are scored again; each number for the queries that are left.
        options: of ``nvret.search.top_k_scores``.
    """
    limits = torch.full((len(queries),), torch.inf) if ceiling is None else ceiling
    limits = torch.as_tensor(limits, dtype=torch.float32).cpu()
    ids = torch.full((len(queries), k), -1)
    scores = torch.full((len(queries), k), NOTHING)
    rows = torch.arange(len(queries))

    def search_rows(top_k: Callable[..., SearchResult], *inputs: Any, upto: Tensor) -> SearchResult:
        left = None if exclude is None else [exclude[row] for row in rows.tolist()]
        return top_k(*inputs, ceiling=upto, exclude=left, **options)

    for extra in more:
        own, off = queries[rows], errors[rows]
        sizes = len(rows), len(corpus), k + extra
        upto = _highest(limits[rows].double(), off).float().nextafter(torch.tensor(torch.inf))
        found = search_rows(search.top_k_scores, approximate(own), *sizes, upto=upto)
        best = _scored(own, corpus, found.ids, limits[rows], k)
        # What was left out scores no higher than this, if anything was
        last = found.scores[:, -1].double()
        sure = (best.scores[:, -1] > _highest(last, off).float()) | (last == NOTHING)
        ids[rows[sure]], scores[rows[sure]] = best.ids[sure], best.scores[sure]
        rows = rows[~sure]
    if len(rows):
        inputs = queries[rows], corpus, k
        ids[rows], scores[rows] = search_rows(search.top_k, *inputs, upto=limits[rows])
    return SearchResult(ids, scores)


def _highest(approximate: Tensor, errors: Tensor) -> Tensor:
    """The highest score of which this can be the approximation (and the other way round)."""
    highest = approximate + errors + 1.05 * UNIT * (approximate.abs() + errors)
    return torch.where(approximate.isinf(), approximate, highest)


def _scored(queries: Tensor, corpus: Tensor, ids: Tensor, limits: Tensor, k: int) -> SearchResult:
    """The k best of these passages that score below the limits, ordered by (-score, id)."""
    ids = ids.sort(dim=1).values  # a place without a passage comes first
    scores = torch.empty(ids.shape)
    for part in torch.arange(len(ids)).split(SCORED):
        vectors = corpus[ids[part].clamp_min(0)].double()
        scores[part] = (vectors @ queries[part].double().unsqueeze(2)).squeeze(2).float()
    scores = scores.masked_fill((ids < 0) | (scores >= limits[:, None]), NOTHING)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order).masked_fill(scores == NOTHING, -1)
    return SearchResult(ids[:, :k], scores[:, :k])


class Screen:
    """In the place of an index: how to search behind a screen."""

    def scorer(self, name: str, key: list[Any], *vectors: Any) -> ScreenedScorer:
        """As ``nvret.teachers.dense_scorer``."""
        return ScreenedScorer(name, fingerprint(*key, "screen"), *vectors)


class ScreenedScorer(DenseScorer):
    """A teacher's vectors, searched behind a screen."""

    search = staticmethod(top_k)
