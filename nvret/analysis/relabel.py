"""A second opinion on mined negatives: what a judge calls relevant is no negative, but a positive.

The place of each is filled from the next candidates that the rule allows, which are judged in turn.

Source: the relabelling of hard negatives, arXiv 2505.16967 (RLHN), which found that to train on
them as positives helps more than to drop them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from nvret import negatives
from nvret.analysis import judge_quality
from nvret.analysis.judges import Judge
from nvret.data import RetrievalDataset

log = logging.getLogger("nvret")
ROUNDS = 8  # in which places are filled again
Mine = Callable[[list[np.ndarray]], pa.Table]


class Opinion(NamedTuple):
    """What a judge left of mined negatives.

    Attributes:
        table: the negatives that it does not call relevant.
        relevant: query_id, corpus_id, score (1) of those that it does.
        read: pairs that it has read.
    """

    table: pa.Table
    relevant: pa.Table
    read: int


def second_opinion(
    dataset: RetrievalDataset,
    mine: Mine,
    exclude: Sequence[np.ndarray],
    judge: Judge,
    *,
    progress: bool = True,
) -> Opinion:
    """Mine, judge, and mine again without what was called relevant, until nothing is.

    Each pair of query and passage is read once, with the first positive that it was mined for.

    Args:
        mine: the negatives, given for each query the rows that may not be negatives.
        exclude: what these are at first.
    """
    banned = [np.asarray(rows, np.int64) for rows in exclude]
    size, seen = dataset.corpus.num_rows, np.empty(0, np.int64)
    relevant = np.empty(0, np.int64)
    for turn in range(ROUNDS):
        table = mine(banned)
        rows = negatives.rows_of(table, dataset)
        keys = (rows["query"] * size + rows["negative"]).to_numpy()
        _, first = np.unique(keys, return_index=True)
        fresh = np.sort(first[~np.isin(keys[first], seen)])
        if not len(fresh):
            break
        part = table.take(pa.array(fresh))
        judged = judge_quality.judge(judge, dataset, part, progress=progress)
        seen = np.concatenate([seen, keys[fresh]])
        found = keys[fresh][judged.table["judged"].to_numpy() >= judge.threshold]
        log.info("%s: round %d, %d of %d relevant", judge.name, turn + 1, len(found), len(fresh))
        if not len(found):
            break
        relevant = np.concatenate([relevant, found])
        for key in found.tolist():
            query, passage = divmod(key, size)
            banned[query] = np.union1d(banned[query], [passage])
    table = table.filter(pa.array(~np.isin(keys, relevant) & np.isin(keys, seen)))
    return Opinion(table, _labels(dataset, np.sort(relevant)), len(seen))


def _labels(dataset: RetrievalDataset, keys: np.ndarray) -> pa.Table:
    queries, passages = (pa.array(rows) for rows in np.divmod(keys, dataset.corpus.num_rows))
    return pa.table({
        "query_id": dataset.queries["id"].take(queries),
        "corpus_id": dataset.corpus["id"].take(passages),
        "score": pa.array(np.ones(len(keys), np.int32)),
    })  # fmt: skip
