"""A teacher whose scores are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nvret import search


@dataclass
class MatrixTeacher:
    """Scores (queries, passages) of a matrix; real teachers are tested in test_teachers.py."""

    matrix: np.ndarray
    name: str = "matrix"
    fingerprint: str = "matrix"

    def pair_scores(self, query_rows, passage_rows):
        return self.matrix[query_rows, passage_rows]

    def block_scores(self, query_rows, passage_rows):
        return self.matrix[np.ix_(query_rows, passage_rows)]

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False):
        scores = torch.from_numpy(self.matrix[query_rows])
        return search.top_k_scores(
            lambda rows, columns, out: out.copy_(scores[rows, columns]),
            len(query_rows), self.matrix.shape[1], k, ceiling=ceiling, exclude=exclude,
        )  # fmt: skip
