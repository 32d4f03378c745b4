"""A judge at work on mined negatives: its scores, what they cost, what they catch and what is left.

Source of `second_opinion`: the relabelling of hard negatives, arXiv 2505.16967 (RLHN), which found
that to train on them as positives helps more than to drop them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import negatives
from nvret.analysis import audit
from nvret.analysis.audit import Hidden
from nvret.analysis.judges import Judge, shares
from nvret.analysis.statistics import Interval
from nvret.data import RetrievalDataset
from nvret.sampling import pair_keys
from nvret.utils import store
from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")
COLUMNS = [*audit.KEYS, "rank", "score", "positive_score"]
RESAMPLES = 400
ROUNDS = 8  # in which places of what a judge calls relevant are filled again


class Judged(NamedTuple):
    """A judge's scores of a table of negatives.

    Attributes:
        table: a row for each negative: ids, rank, the teacher's scores, ``judged`` (the judge's
            score), and with hidden labels ``known``: whether it is a hidden positive.
    """

    judge: str  # its name
    threshold: float  # score from which a negative counts as relevant
    table: pd.DataFrame
    seconds: float  # for a thousand pairs
    tokens: float  # read for a pair

    def save(self, folder: Path) -> None:
        """Write what `load` reads into a folder."""
        self.table.to_parquet(folder / "table.parquet")
        facts = {name: value for name, value in self._asdict().items() if name != "table"}
        store.write_json(folder / "facts.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Judged:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return cls(table=pd.read_parquet(folder / "table.parquet"), **facts)


def sample(table: pa.Table, number: int, *, hidden: Hidden | None = None) -> pa.Table:
    """The ``number`` negatives whose ids hash lowest; rows keep their order.

    Args:
        hidden: take half of them (or all there are) from the hidden positives, which are few among
            negatives, so that a few pairs say more; `quality` is told their true ``share``.
    """
    # Not in the order of audit.hide, which keeps the positive of the lowest hash
    order = np.argsort(pair_keys(table["negative_id"], table["query_id"], 0), kind="stable")
    if hidden is not None:
        known = audit.known(table, hidden)[order]
        half = max(number // 2, number - int((~known).sum()))
        positives = order[known][:half]
        order = np.r_[positives, order[~known][: number - len(positives)]]
    return table.take(pa.array(np.sort(order[:number])))


def judge(
    judge: Judge,
    dataset: RetrievalDataset,
    table: pa.Table,
    hidden: Hidden | None = None,
    *,
    progress: bool = True,
) -> Judged:
    """A judge's scores of all negatives of a table, beside hidden labels if there are any.

    Raises:
        NvretError: no rows, a missing column, an id that is not in the data set.
    """
    if not table.num_rows:
        raise NvretError(f"{judge.name}: the table holds no negative to judge")
    rows = negatives.rows_of(table, dataset)
    sources = {"query": dataset.query_texts, "negative": dataset.passages}
    sources["positive"] = dataset.passages
    texts = [[source[row] for row in rows[name]] for name, source in sources.items()]
    start = time.perf_counter()
    values, tokens = judge.scores(*texts, progress=progress)
    seconds = time.perf_counter() - start
    judged, number = _with_scores(table, hidden, values), len(rows)
    return Judged(judge.name, judge.threshold, judged, 1000 * seconds / number, tokens / number)


def by_ceiling(table: pa.Table, hidden: Hidden, perc: float = 0.95) -> Judged:
    """What TopK-PercPos decides from the scores in the table: a judge that costs nothing."""
    values = shares(table["score"].to_numpy(), table["positive_score"].to_numpy())
    name = f"{table['teacher'][0].as_py()}, the teacher"
    return Judged(name, perc, _with_scores(table, hidden, values), 0.0, 0.0)


def quality(judged: Judged, share: float | None = None) -> dict[str, Any]:
    """How well a judge's scores tell the hidden positives from the other negatives.

    Precision is a lower bound: some of the others are positives that nobody has labelled.

    Args:
        share: of hidden positives among the negatives that the pairs were sampled from, where it
            is not that of the sample.
    Returns:
        judge, pairs, known (hidden positives), flagged (share at or above the threshold), precision
        and recall of that, AUC with its interval over queries; NaN where there is only one kind.
    """
    from sklearn.metrics import precision_score, recall_score

    known, score = _known(judged)
    flagged, sampled = score >= judged.threshold, known.mean()
    weight = np.ones(len(known))
    if share is not None and 0 < sampled < 1:
        weight = np.where(known, share / sampled, (1 - share) / (1 - sampled))
    area = auc_interval(known, score, judged.table["query_id"].to_numpy())
    options = {"sample_weight": weight, "zero_division": np.nan}
    return {
        "judge": judged.judge,
        "pairs": len(known),
        "known": int(known.sum()),
        "flagged": float(np.average(flagged, weights=weight)),
        "precision": float(precision_score(known, flagged, **options)),
        "recall": float(recall_score(known, flagged, **options)),
        **dict(zip(("AUC", "low", "high"), area, strict=True)),
    }


def auc_interval(known: np.ndarray, score: np.ndarray, queries: np.ndarray) -> Interval:
    """Area under the ROC curve of (P,) pairs and the 95 % interval of a bootstrap over queries."""
    from sklearn.metrics import roc_auc_score

    if known.all() or not known.any():
        return Interval(np.nan, np.nan, np.nan)
    group = np.unique(queries, return_inverse=True)[1]
    size = int(group.max()) + 1
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    areas = [
        roc_auc_score(known, score, sample_weight=weight)
        for weight in drawn[:, group]
        if weight[known].any() and weight[~known].any()
    ]
    low, high = np.quantile(areas, [0.025, 0.975]) if areas else (np.nan, np.nan)
    return Interval(float(roc_auc_score(known, score)), float(low), float(high))


def curve(judged: Judged) -> pd.DataFrame:
    """At every threshold that changes anything: recall of the hidden positives, and ``removed``,
    the share of the other negatives that are thrown out with them.
    """
    from sklearn.metrics import roc_curve

    known, score = _known(judged)
    if known.all() or not known.any():
        return pd.DataFrame(columns=["recall", "removed"], dtype=float)
    removed, recall, _ = roc_curve(known, score, drop_intermediate=False)
    return pd.DataFrame({"recall": recall, "removed": removed})[1:]  # the first is above all scores


def _known(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    if "known" not in judged.table:
        raise NvretError(f"{judged.judge} was run without hidden labels: nothing to compare with")
    return judged.table["known"].to_numpy(bool), judged.table["judged"].to_numpy(float)


def _with_scores(table: pa.Table, hidden: Hidden | None, scores: np.ndarray) -> pd.DataFrame:
    rows = table.select(COLUMNS).to_pandas().assign(judged=scores)
    return rows if hidden is None else rows.assign(known=audit.known(table, hidden))


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
    mine: Callable[[list[np.ndarray]], pa.Table],
    exclude: Sequence[np.ndarray],
    reader: Judge,
    *,
    progress: bool = True,
) -> Opinion:
    """Mine, judge, and mine again without what was called relevant, until nothing is.

    The next candidates take the places. Each pair of query and passage is read once, with the first
    positive that it was mined for.

    Args:
        mine: the negatives, given for each query the rows that may not be negatives.
        exclude: what these are at first.
    """
    excluded, size = [np.asarray(rows, np.int64) for rows in exclude], dataset.corpus.num_rows
    seen, relevant = np.empty((2, 0), np.int64)
    for turn in range(1, ROUNDS + 1):
        table = mine(excluded)
        rows = negatives.rows_of(table, dataset)
        keys = (rows["query"] * size + rows["negative"]).to_numpy()
        _, first = np.unique(keys, return_index=True)
        fresh = np.sort(first[~np.isin(keys[first], seen)])
        if not len(fresh):
            break
        judged = judge(reader, dataset, table.take(pa.array(fresh)), progress=progress)
        seen = np.append(seen, keys[fresh])
        found = keys[fresh][judged.table["judged"].to_numpy() >= reader.threshold]
        log.info("%s: round %d, %d of %d relevant", reader.name, turn, len(found), len(fresh))
        if not len(found):
            break
        relevant = np.append(relevant, found)
        for query, passage in np.column_stack(np.divmod(found, size)).tolist():
            excluded[query] = np.union1d(excluded[query], [passage])
    table = table.filter(pa.array(~np.isin(keys, relevant) & np.isin(keys, seen)))
    pairs = audit.pairs_of(dataset, *np.divmod(np.sort(relevant), size))
    score = pa.array(np.ones(len(relevant), np.int32))
    return Opinion(table, pairs.append_column("score", score), len(seen))
