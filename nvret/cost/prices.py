"""The cost model's arithmetic: terms of the work, their prices, and the bytes that they take.

The time of a search is a sum of terms that its algorithm has, each with the machine's own price:

    seconds = c0 + c1 Q visits + c2 Q N + c3 Q N D + c4 N D

for a call; each visit of a query to a tile of scores (its k best are picked there); each score;
each multiply-add; each value of the corpus, which is checked once. Encoding costs for each text,
each token, and each token times the length of its text (attention). The prices are fitted to
measured runs by least squares on the *relative* error, none below zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from nvret import search
from nvret.utils.errors import NvretError

SEARCH_TERMS = (
    "call",
    "visit of a query to a tile",
    "score",
    "multiply-add",
    "value of the corpus",
)
ENCODING_TERMS = ("text", "token", "token times length")
MEBIBYTE, GIBIBYTE = 2**20, 2**30
FLOAT, RESULT = 4, 12  # bytes of a float32; of a result, int64 id and float32 score


class Lengths(NamedTuple):
    """Tokens per text: mean, and mean of the square."""

    mean: float
    mean_square: float

    @classmethod
    def of(cls, lengths: np.ndarray) -> Lengths:
        return cls(float(lengths.mean()), float((lengths.astype(float) ** 2).mean()))

    def scaled(self, mean: float | None) -> Lengths:
        """Lengths of another mean, spread as these are; None: these.

        >>> Lengths(10, 120).scaled(20)
        Lengths(mean=20, mean_square=480.0)
        """
        return self if mean is None else Lengths(mean, self.mean_square * (mean / self.mean) ** 2)


@dataclass(frozen=True)
class Prices:
    """Seconds of each term.

    >>> prices = Prices.fit(np.array([[1.0, 10], [1, 20], [1, 40]]), np.array([7.0, 12, 22]))
    >>> prices.seconds.round(6).tolist(), float(prices.of(np.array([1, 100])).round(6))
    ([2.0, 0.5], 52.0)
    """

    seconds: np.ndarray

    @classmethod
    def fit(cls, terms: np.ndarray, seconds: np.ndarray) -> Prices:
        """Non-negative least squares on the relative error.

        Args:
            terms: (R, T) how much of each term a run holds.
            seconds: (R,) of the runs, above 0.
        """
        terms, seconds = np.asarray(terms, float), np.asarray(seconds, float)
        if terms.ndim != 2 or terms.shape[:1] != seconds.shape or not len(seconds):
            raise NvretError(f"terms {terms.shape} for seconds {seconds.shape}, expected (R, T), R")
        if not np.isfinite(terms).all() or not (np.isfinite(seconds) & (seconds > 0)).all():
            raise NvretError("a measured time or term is not finite, or a time is not above 0")
        shares = terms / seconds[:, None]
        size = np.maximum(np.linalg.norm(shares, axis=0), np.finfo(float).tiny)  # for conditioning
        return cls(nnls(shares / size, np.ones(len(seconds)))[0] / size)

    def of(self, terms: np.ndarray) -> np.ndarray:
        """Seconds of (..., T) terms."""
        return np.asarray(terms, float) @ self.seconds


def search_terms(queries: int, passages: int, dimension: int, buffer_mb: int = 256) -> np.ndarray:
    """(5,) how much a search holds of each of ``SEARCH_TERMS``.

    >>> search_terms(1000, 300_000, 2).astype(int).tolist()  # a tile holds 262,144 passages
    [1, 2000, 300000000, 600000000, 600000]
    """
    visits = queries * -(-passages // search.shape(queries, passages, buffer_mb)[1])
    scores = queries * passages
    return np.array([1, visits, scores, scores * dimension, passages * dimension], float)


def encoding_terms(texts: float, lengths: Lengths) -> np.ndarray:
    """(3,) how much an encoding holds of each of ``ENCODING_TERMS``."""
    return texts * np.array([1, lengths.mean, lengths.mean_square], float)


def search_bytes(queries: int, passages: int, k: int, *, buffer_mb: int = 256) -> int:
    """Memory that a search takes beside its vectors: a tile of scores, its best, the results.

    >>> search_bytes(1024, 1 << 20, 64) / MEBIBYTE < 256 + 12
    True
    """
    rows, columns = search.shape(queries, passages, buffer_mb)
    scores = rows * columns * FLOAT
    read_again = rows * min(k * search.BLOCK, columns) * FLOAT
    return scores + scores // search.BLOCK + read_again + queries * k * RESULT


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> [duration(s) for s in (0.25, 59.7, 3700, 200_000)]
    ['0.2 s', '1 min 0 s', '1 h 2 min', '2 d 8 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (large, most), (small, least) in pairwise(units):
        if round(seconds / least) * least >= most:
            whole, rest = divmod(round(seconds / least), most // least)
            return f"{whole:,} {large} {rest} {small}"
    return f"{seconds:.0f} s"
