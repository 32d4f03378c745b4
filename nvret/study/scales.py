"""A teacher's scale of scores: where positives, candidates and chance lie, and what a bound drops.

A threshold or a margin is a number on this scale, so that one that fits a teacher says nothing of
another; a percentage at least follows a stretched scale, though not a shifted one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nvret import methods
from nvret.data import RetrievalDataset
from nvret.sampling import draw_rows, pair_keys
from nvret.teachers import Scorer


def scores(
    dataset: RetrievalDataset, scorer: Scorer, banned: Sequence[np.ndarray], depth: int = 4
) -> dict[str, np.ndarray]:
    """Scores of each pair's positive, of its best candidates and of a random passage.

    Args:
        banned: of ``mining.forbidden``.
        depth: candidates of a pair.
    Returns:
        "positive" (P,), "candidates" (P, depth) by falling score, "random passage" (P,).
    """
    query_rows, positive_rows = dataset.pairs
    ids = dataset.queries["id"].take(query_rows), dataset.corpus["id"].take(positive_rows)
    taboo = [banned[row] for row in query_rows]
    drawn = draw_rows(pair_keys(*ids, 0), dataset.corpus.num_rows, 1, taboo)[:, 0]
    found = scorer.top_k(query_rows, depth, exclude=taboo)
    return {
        "positive": scorer.pair_scores(query_rows, positive_rows),
        "candidates": found.scores.numpy(),
        "random passage": scorer.pair_scores(query_rows, drawn),
    }


def bounds(found: dict[str, np.ndarray], rules: Sequence[methods.Method]) -> pd.DataFrame:
    """What each rule does on this scale.

    Args:
        found: of ``scores``.
        rules: methods with a ceiling.
    Returns:
        a row a rule: the share of the best candidates that it lets pass, the share of pairs whose
        first candidate it drops, and the margin and percentage that its ceiling amounts to at the
        median positive.

    >>> toy = {"positive": np.array([0.8]), "candidates": np.array([[0.9, 0.5]])}
    >>> float(bounds(toy, [methods.TopKAbs(0.7)])["candidates below"].iloc[0])
    0.5
    """
    positive, candidates = found["positive"], found["candidates"]
    middle = np.median(positive)
    rows = []
    for rule in rules:
        ceiling = rule.ceiling(positive)[:, None]
        at_middle = float(rule.ceiling(np.array([middle]))[0])
        rows.append(
            {
                "rule": str(rule),
                "candidates below": (candidates < ceiling).mean(),
                "pairs whose first is dropped": (candidates[:, 0] >= ceiling[:, 0]).mean(),
                "as a margin": middle - at_middle,
                "as a percentage": at_middle / middle,
            }
        )
    return pd.DataFrame(rows).set_index("rule")
