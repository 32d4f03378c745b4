"""Which of the candidates that a method allows become negatives: the first, drawn, or both.

Source: NV-Retriever, arXiv 2407.15831, section 4.3 and footnote 13 (softmax over the scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pandas.util import hash_array

from nvret.search import NOTHING, SearchResult
from nvret.teachers import Scorer
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import distinct


@dataclass(frozen=True)
class TopK:
    """The first ``num_negatives`` candidates that the method leaves."""

    name: ClassVar[str] = "top-k"

    def depth(self, num_negatives: int) -> int:
        return num_negatives


@dataclass(frozen=True)
class SampledTopK:
    """Drawn without replacement from the first ``k`` candidates, by a softmax over their scores."""

    k: int
    temperature: float = 1.0
    name: ClassVar[str] = "sampled"
    always: ClassVar[int] = 0  # leading candidates that are taken without a draw

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0:
            raise NvretError(f"{self}: expected k of at least 1 and a temperature above 0")

    def depth(self, num_negatives: int) -> int:
        if self.k < num_negatives:
            raise NvretError(f"{self} cannot give {num_negatives} negatives: k is smaller")
        return self.k


@dataclass(frozen=True)
class Top1PlusSampled(SampledTopK):
    """The first candidate, and the others drawn as by ``SampledTopK`` from the rest."""

    name: ClassVar[str] = "top-1+sampled"
    always: ClassVar[int] = 1


Sampling = TopK | SampledTopK


class Distinct:
    """A scorer of these passages that passes over copies of what a query has been given already.

    One is a copy of another from a word-trigram Jaccard similarity of ``threshold`` on.
    """

    def __init__(self, scorer: Scorer, passages: Sequence[str], threshold: float) -> None:
        self.scorer, self.passages, self.threshold = scorer, passages, threshold

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False) -> SearchResult:
        """As `nvret.search.top_k`: of texts that are copies of each other the best alone."""
        shape, rows = (len(query_rows), k), np.arange(len(query_rows))
        best = SearchResult(torch.full(shape, -1), torch.full(shape, NOTHING))
        depth = k + 4  # should there be copies
        while len(rows):
            limits = None if ceiling is None else ceiling[rows]
            excluded = None if exclude is None else [exclude[row] for row in rows]
            asked = np.asarray(query_rows)[rows]
            found = self.scorer.top_k(asked, depth, limits, excluded, progress=progress)
            kept = distinct(self.passages, found.ids.numpy(), self.threshold, k)
            row, place = kept.nonzero()
            nth = (kept.cumsum(1) - 1)[row, place]
            best.ids[rows[row], nth] = found.ids[row, place]
            best.scores[rows[row], nth] = found.scores[row, place]
            rows = rows[(kept.sum(1) < k) & (found.ids[:, -1] >= 0).numpy()]
            depth *= 4
        return best


def draw(scores: np.ndarray, noise: np.ndarray, num: int, sampling: SampledTopK) -> np.ndarray:
    """Choose candidates by a softmax over their scores, without replacement (Gumbel top-k).

    Args:
        scores: (P, k) of the candidates, by falling score; -inf where there is none.
        noise: (P, k) standard Gumbel noise; adding it to the logits and keeping the largest
            ``num`` draws without replacement (Kool et al. 2019, arXiv 1903.06059).
    Returns:
        (P, num) chosen columns, rising.

    >>> scores = np.array([[0.9, 0.8, 0.1]])
    >>> draw(scores, np.array([[0.0, 0.0, 2.0]]), 2, Top1PlusSampled(3))
    array([[0, 2]])
    """
    keys = scores / sampling.temperature + noise
    keys[:, : sampling.always] = np.where(
        np.isneginf(scores[:, : sampling.always]), -np.inf, np.inf
    )
    return np.sort(np.argsort(-keys, axis=1, kind="stable")[:, :num], axis=1)


def pair_keys(query_ids: pa.ChunkedArray, positive_ids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """(P,) uint64: the state of a random stream per (query, positive) pair.

    It depends on the ids and not on the place, so that the order of the queries, and which other
    queries there are, do not change a draw.
    """
    keys = _mix(np.full(len(query_ids), seed % 2**64, np.uint64))
    for ids in (query_ids, positive_ids):
        keys = _mix(keys ^ hash_array(ids.to_numpy().astype(object)))
    return keys


def random_bits(keys: np.ndarray, columns: int) -> np.ndarray:
    """(P, columns) uint64: the next numbers of each key's SplitMix64 stream.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(keys[:, None] + steps)


def gumbel_noise(keys: np.ndarray, columns: int) -> np.ndarray:
    """(P, columns) standard Gumbel noise of each key's stream."""
    uniform = ((random_bits(keys, columns) >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1)
    return -np.log(-np.log(uniform))


def draw_rows(keys: np.ndarray, size: int, num: int, exclude: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of a corpus, uniformly and without replacement, none of them excluded.

    Args:
        keys: (P,) of `pair_keys`.
        size: N, rows of the corpus.
        num: rows for each key.
        exclude: P arrays of rows that may not be drawn.
    Returns:
        (P, num) int64; -1 where too few are left.

    >>> draw_rows(np.array([7], np.uint64), 3, 2, [np.array([0, 1])])
    array([[ 2, -1]])
    """
    count = len(keys)
    columns = 4 * num + 16
    drawn = (random_bits(keys, columns) % np.uint64(size)).astype(np.int64)
    places = drawn + size * np.arange(count)[:, None]
    excluded = np.concatenate(
        [np.asarray(ids, np.int64) + size * p for p, ids in enumerate(exclude)]
    )
    order = np.argsort(drawn, axis=1, kind="stable")
    ranked = np.take_along_axis(drawn, order, 1)
    again = np.zeros(drawn.shape, bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    free = ~(again | np.isin(places, excluded))
    first = np.argsort(~free, axis=1, kind="stable")[:, :num]
    rows = np.take_along_axis(drawn, first, 1)
    for p in np.flatnonzero(free.sum(1) < num):  # a corpus hardly larger than what is wanted
        shuffled = np.argsort(random_bits(~keys[p : p + 1], size)[0])
        left = shuffled[~np.isin(shuffled, exclude[p])][:num]
        rows[p] = -1
        rows[p, : len(left)] = left
    return rows


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function; overflow is meant."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))
