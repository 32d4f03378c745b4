"""The candidates that each method allows, from one search for a whole sweep of methods.

Under any ceiling the best candidates are a run of the ranking without one: those above it are its
first ranks. So a ranking that is a little deeper than a method needs answers every method whose
ceiling cuts off no more than that, and only the pairs that it cuts deeper are searched again, under
their own ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvret.methods import Method
from nvret.teachers import Scorer

SPARE = 64  # ranks of a shared search beyond those that a method needs


class Candidates(NamedTuple):
    """The first candidates of each pair, in rank order.

    ids: (P, K) int64 rows of the corpus, -1 where there are fewer.
    scores: (P, K) float32, -inf there.
    """

    ids: np.ndarray
    scores: np.ndarray


def rank(
    scorer: Scorer,
    query_rows: np.ndarray,
    methods: Sequence[Method],
    ceilings: Sequence[np.ndarray],
    depth: int,
    banned: Sequence[np.ndarray],
    *,
    progress: bool = True,
) -> list[Candidates]:
    """For each method the first ``depth`` candidates of each pair, after the ranks that it skips.

    Args:
        scorer: the teacher.
        query_rows: (P,) the pairs' queries.
        methods, ceilings: M methods, and the (P,) ceilings that each of them sets.
        depth: K.
        banned: for each pair the rows of the corpus that are no candidates.
    """
    if not methods:
        return []
    needed = max(method.skip for method in methods) + depth
    loosest = np.max(ceilings, axis=0)
    spare = SPARE if len(methods) > 1 else 0
    shared = _top_k(scorer, query_rows, needed + spare, loosest, banned, progress)
    found = []
    for method, ceiling in zip(methods, ceilings, strict=True):
        first = (shared.scores >= ceiling[:, None]).sum(1)
        columns = first[:, None] + np.arange(method.skip, method.skip + depth)
        inside = columns < shared.ids.shape[1]
        columns = np.where(inside, columns, 0)
        ids = np.where(inside, np.take_along_axis(shared.ids, columns, 1), -1)
        scores = np.where(inside, np.take_along_axis(shared.scores, columns, 1), -np.inf)
        # Cut off by the end of the ranking and not by the end of the corpus
        short = np.flatnonzero(~inside[:, -1] & (shared.ids[:, -1] >= 0))
        if len(short):
            again = _top_k(
                scorer,
                query_rows[short],
                method.skip + depth,
                ceiling[short],
                [banned[pair] for pair in short],
                progress,
            )
            ids[short], scores[short] = again.ids[:, method.skip :], again.scores[:, method.skip :]
        found.append(Candidates(ids, scores))
    return found


def _top_k(
    scorer: Scorer,
    query_rows: np.ndarray,
    k: int,
    ceiling: np.ndarray,
    banned: Sequence[np.ndarray],
    progress: bool,
) -> Candidates:
    unlimited = np.isposinf(ceiling).all()
    result = scorer.top_k(query_rows, k, None if unlimited else ceiling, banned, progress=progress)
    return Candidates(result.ids.numpy(), result.scores.numpy())
