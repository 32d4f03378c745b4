"""Which passages may not be negatives of a query: labelled positives, and those a guide suspects.

Mined negatives are filtered where they are mined. Negatives that come by chance, those of the batch
and of the memory bank, are checked here: against the labels and, as an option, against a teacher
("guide") that scores them next to the pair's own positive. What the guide places above the positive
is probably relevant and unlabelled.

Source: GISTEmbed, arXiv 2402.16829 (margin 0); Qwen3-Embedding, arXiv 2506.05176, masks what is
above the positive's score + 0.1. Both also mask queries against queries; here are passages alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nvret.teachers import Scorer


@dataclass(frozen=True)
class Relevance:
    """Relevant or suspected passages of (query, positive) pairs, by rows of one data set.

    Attributes:
        positives: for each query the corpus rows that are labelled relevant.
        guide: a teacher that has read the data set; None: the labels alone.
        margin: how far above the pair's positive a passage must score to be suspected, in the
            guide's own units (cosines, BM25 sums); below 0 it is suspected earlier.

    >>> relevance = Relevance([np.array([4]), np.array([0, 2])])
    >>> relevance(np.array([0, 1]), np.array([4, 2]), np.array([0, 1, 2, 4])).astype(int)
    array([[0, 0, 0, 1],
           [1, 0, 1, 0]])
    """

    positives: Sequence[np.ndarray]
    guide: Scorer | None = None
    margin: float = 0.0

    def __call__(
        self, queries: np.ndarray, positives: np.ndarray, passages: np.ndarray
    ) -> np.ndarray:
        """(B, U) bool, whether passage u may not be a negative of pair b.

        The guide scores B * (U + 1) pairs.

        Args:
            queries: (B,) int, query rows.
            positives: (B,) int, the pairs' corpus rows.
            passages: (U,) int, corpus rows.
        """
        known = np.stack([np.isin(passages, self.positives[query]) for query in queries])
        if self.guide is None:
            return known
        pool = np.broadcast_to(passages, known.shape)
        scored = np.column_stack([positives, pool])  # in one call, so that equal texts score equal
        rows = np.repeat(queries, scored.shape[1])
        scores = self.guide.pair_scores(rows, scored.ravel()).reshape(scored.shape)
        return known | (scores[:, 1:] > scores[:, :1] + self.margin)
