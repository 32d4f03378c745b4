"""Which of the candidates that a method allows become negatives: the first, drawn, or both.

Source: NV-Retriever, arXiv 2407.15831, section 4.3 and footnote 13 (softmax over the scores).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nvret.errors import NvretError


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
    name: ClassVar[str] = "sampled top-k"
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

    name: ClassVar[str] = "top-1 + sampled"
    always: ClassVar[int] = 1


Sampling = TopK | SampledTopK


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


def pair_streams(
    query_ids: Sequence[str], positive_ids: Sequence[str], seed: int
) -> Iterator[np.random.Generator]:
    """One random generator per (query, positive) pair, seeded by the ids and not by the place.

    So the order of the queries, and which other queries there are, do not change a draw.

    >>> a, b = (next(pair_streams(["q1"], ["p1"], seed=0)).random() for _ in range(2))
    >>> a == b
    True
    """
    for pair in zip(query_ids, positive_ids, strict=True):
        digest = hashlib.sha256(json.dumps(pair).encode()).digest()
        yield np.random.default_rng([seed, int.from_bytes(digest[:16], "big")])
