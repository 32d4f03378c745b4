"""The metrics of retrieval from grades, defined and summed as in trec_eval, for many queries."""

from __future__ import annotations

import math

import numpy as np

from nvret.utils.errors import NvretError


def metrics(grades: np.ndarray, ideal: np.ndarray, k: list[int]) -> dict[str, np.ndarray]:
    """(Q,) float64 of each metric and cut.

    Args:
        grades: (Q, depth) the relevance at each rank; 0 or less is not relevant.
        ideal: (Q, most) of all that is relevant, in descending order.
        k: the cuts.

    >>> found = metrics(np.array([[0, 1]]), np.array([[1, 0]]), [1, 10])
    >>> {name: round(float(values[0]), 4) for name, values in found.items() if "10" in name}
    {'ndcg_at_10': 0.6309, 'recall_at_10': 1.0, 'map_at_10': 0.5, 'mrr_at_10': 0.5}
    """
    grades = np.pad(grades, ((0, 0), (0, 1)))  # there may be none
    ranks = np.arange(1, max(grades.shape[1], ideal.shape[1]) + 1)
    discounts = np.array([math.log2(rank + 1) for rank in ranks])
    dcg, best = ((of / discounts[: of.shape[1]]).cumsum(1) for of in (grades, ideal))
    hits, relevant = (grades > 0).cumsum(1), (ideal > 0).sum(1)
    precisions = np.where(grades > 0, hits / ranks[: hits.shape[1]], 0).cumsum(1)
    first = np.where(hits[:, -1] > 0, (hits > 0).argmax(1) + 1, math.inf)
    last = {cut: min(cut, hits.shape[1]) - 1 for cut in k}
    best = {cut: best[:, min(cut, best.shape[1]) - 1] for cut in k}
    return (
        {f"ndcg_at_{cut}": dcg[:, place] / best[cut] for cut, place in last.items()}
        | {f"recall_at_{cut}": hits[:, place] / relevant for cut, place in last.items()}
        | {f"map_at_{cut}": precisions[:, place] / relevant for cut, place in last.items()}
        | {f"mrr_at_{cut}": np.where(first <= cut, 1 / first, 0) for cut in k}
    )


def check_ranking(ids: np.ndarray, scores: np.ndarray, queries: int, passages: int) -> None:
    """`NvretError` for ids and scores, (Q, depth), that are no ranking of so many passages."""
    if ids.ndim != 2 or ids.shape != scores.shape or len(ids) != queries:
        raise NvretError(
            f"ids have shape {ids.shape} and scores {scores.shape}, "
            f"expected ({queries}, depth) for the {queries} queries of the data set"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise NvretError(f"ids have type {ids.dtype}, expected integers")
    valid = ids >= 0
    ordered = np.sort(np.where(valid, ids, -1), axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    for bad, problem in (
        ((ids < -1) | (ids >= passages), f"an id outside of -1 to {passages - 1}"),
        (repeated, "the same id twice"),
        (valid & ~np.isfinite(scores), "a score that is not finite"),
    ):
        if bad.any():
            raise NvretError(f"ranking: query row {int(bad.any(1).argmax())} holds {problem}")
