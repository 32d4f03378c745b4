"""Retrieval scores per query, by mteb's own task, or as arrays for many models.

The texts are encoded by ``nvret.encode``, the passages are found by the exact search of
``nvret.search``. A data set becomes an ``AbsTaskRetrieval`` of mteb (`nvret.io.mteb_task`), and the
ranking a searcher behind mteb's search protocol, so that the numbers come out of the code that the
MTEB leaderboard runs. A ranking that no encoder made (BM25, a reranker) takes the same road. Of
many models (`evaluate_all`) the rankings are scored as arrays: the same numbers in less time.

mteb itself keeps means, rounded to five digits, under a model's *name*. Here the scores of every
query are returned, since intervals and paired comparisons need them.

Source: Thakur et al. 2021 (BEIR), arXiv 2104.08663; Muennighoff et al. 2023 (MTEB), 2210.07316.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret.data import RetrievalDataset
from nvret.utils import processes
from nvret.utils.errors import NvretError
from nvret.utils.trec import check_ranking, metrics

if TYPE_CHECKING:
    from nvret.encode import Encoder


@dataclass(frozen=True)
class Evaluation:
    """The scores of one system on one data set.

    Attributes:
        dataset: name of the data set.
        scores: a row a query, in the order of the data set: ``query_id`` (string), then float64 in
            [0, 1]: ``ndcg_at_{k}``, ``recall_at_{k}``, ``map_at_{k}``, ``mrr_at_{k}`` for each k.
        ranking: what was scored: for each of these queries (Q, depth) rows of the corpus, -1 where
            there are fewer, and (Q, depth) float32 scores.

    >>> table = pa.table({"query_id": ["a", "b"], "ndcg_at_10": [1.0, 0.5]})
    >>> Evaluation("toy", table).summary
    {'ndcg_at_10': 0.75}
    """

    dataset: str
    scores: pa.Table
    ranking: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)

    @property
    def metrics(self) -> list[str]:
        """Names of the score columns."""
        return [name for name in self.scores.column_names if name != "query_id"]

    @property
    def summary(self) -> dict[str, float]:
        """The mean of each metric over the queries."""
        return {name: float(self.values(name).mean()) for name in self.metrics}

    def values(self, metric: str) -> np.ndarray:
        """(Q,) float64 scores of one metric, in the order of ``scores``."""
        if metric not in self.metrics:
            raise NvretError(f"no metric {metric!r}, expected one of {', '.join(self.metrics)}")
        return self.scores[metric].to_numpy()


def evaluate(
    encoder: Encoder,
    dataset: RetrievalDataset,
    *,
    query_max_length: int | None,
    passage_max_length: int | None,
    k: Sequence[int] = (10, 100),
    progress: bool = True,
) -> Evaluation:
    """Encode queries and passages, search exactly, score every query.

    Queries without a relevant passage have no recall and are left out, as in mteb. Passages with
    equal scores stand in descending order of their id, as in trec_eval and mteb.

    Args:
        encoder: its own prompts are used for queries and passages.
        dataset: graded relevance counts in NDCG; a score of 0 or less is "not relevant".
        query_max_length, passage_max_length: in tokens; None is the encoder's own limit.
        k: ranks at which the metrics are cut; the search goes as deep as the largest.
        progress: show bars.
    Raises:
        NvretError: bad ``k``, no query with a relevant passage, an encoder that returns NaN.
    """
    lengths = query_max_length, passage_max_length
    (found,) = evaluate_all(encoder, [dataset], *lengths, k=k, progress=progress)
    return _scored(dataset, *found.ranking, _check_k(k), mteb=True)


def evaluate_all(
    encoder: Encoder,
    datasets: Sequence[RetrievalDataset],
    query_max_length: int | None,
    passage_max_length: int | None,
    *,
    k: Sequence[int] = (10, 100),
    progress: bool = True,
) -> list[Evaluation]:
    """`evaluate` of data sets that share texts, in their order: each text is encoded once.

    The vectors of all of them are in memory together, as one (N, D) matrix. The scores are those of
    trec_eval, computed here from arrays.
    """
    from nvret.teachers import DenseScorer  # and with it torch

    cuts, by_size = _check_k(k), sorted(datasets, key=lambda d: -d.corpus.num_rows)
    asked = [[d.query_texts[row] for row in _asked(d)] for d in datasets]
    texts = map(itertools.chain.from_iterable, (asked, (d.passages for d in by_size)))
    queries, passages = (
        _Vectors(encoder, some, kind, length, progress)
        for some, kind, length in zip(
            texts, ("query", "passage"), (query_max_length, passage_max_length), strict=True
        )
    )
    evaluations = []
    for dataset, own in zip(datasets, asked, strict=True):
        vectors = queries.of(own), passages.of(dataset.passages)
        scorer = DenseScorer("student", "", *vectors, str(encoder.device))
        found = scorer.top_k(np.arange(len(own)), cuts[-1], progress=progress)
        ranking = found.ids.numpy(), found.scores.numpy()
        evaluations.append(_scored(dataset, *ranking, cuts))
    return evaluations


def evaluate_ranking(
    ids: np.ndarray, scores: np.ndarray, dataset: RetrievalDataset, *, k: Sequence[int] = (10, 100)
) -> Evaluation:
    """Score a ranking that is already there, such as BM25's.

    Args:
        ids: (Q, depth) integer rows of ``dataset.corpus``, one row a query of ``dataset.queries``;
            -1 where a query has fewer results. A depth below the largest k lowers its recall.
        scores: (Q, depth) higher is better; compared as float32, which is what trec_eval reads.
            The scores alone decide the order; ties stand in descending order of the passage id.
        dataset, k: as in `evaluate`.
    Raises:
        NvretError: shapes that do not match, an id outside of the corpus or twice in a row, NaN.
    """
    ids, scores = np.asarray(ids), np.asarray(scores, dtype=np.float32)
    check_ranking(ids, scores, dataset.queries.num_rows, dataset.corpus.num_rows)
    asked = _asked(dataset)
    return _scored(dataset, ids[asked], scores[asked], _check_k(k), mteb=True)


def _scored(
    dataset: RetrievalDataset, ids: np.ndarray, scores: np.ndarray, k: list[int], mteb: bool = False
) -> Evaluation:
    """Score the ranking of the queries that have a relevant passage, in the data set's order.

    Args:
        mteb: whether mteb's own task gives each metric that it has by query.
    """
    ranked = in_order(dataset, ids, scores)
    columns = metrics(*graded(dataset, ranked, np.arange(dataset.corpus.num_rows)), k)
    if mteb:
        from nvret.io import mteb_task

        columns |= mteb_task.score(dataset, ids, scores, k)
    asked = dataset.queries["id"].take(pa.array(_asked(dataset)))
    return Evaluation(dataset.name, pa.table({"query_id": asked} | columns), (ids, scores))


def in_order(dataset: RetrievalDataset, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(Q, depth) rows of the corpus as trec_eval ranks them: ties in descending order of the id."""
    descending = np.empty(dataset.corpus.num_rows, np.int64)
    order = pc.sort_indices(dataset.corpus["id"], sort_keys=[("", "descending")]).to_numpy()
    descending[order] = np.arange(len(order))
    order = np.lexsort((descending[ids], np.where(ids < 0, np.inf, -scores)))
    return np.take_along_axis(np.where(ids < 0, -1, ids), order, 1)


def graded(
    dataset: RetrievalDataset, ranked: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The relevance at each rank, (Q, depth), and of all that is relevant, (Q, most), descending.

    Args:
        ranked: (Q, depth) what stands at each rank, for each query with a relevant passage; units,
            with -1 after the last one.
        unit: (N,) what each passage of the corpus is in a ranking: itself, or its cluster, which is
            as relevant as the most relevant of it.
    """
    relevant = dataset.qrels.filter(pc.greater(dataset.qrels["score"], 0))
    rows, passages = (
        pc.index_in(relevant[column], table["id"]).to_numpy()
        for column, table in (("query_id", dataset.queries), ("corpus_id", dataset.corpus))
    )
    key = np.unique(rows, return_inverse=True)[1] * len(unit) + unit[passages]
    judged = pd.Series(relevant["score"].to_numpy(), key).groupby(level=0).max()
    wanted = np.arange(len(ranked))[:, None] * len(unit) + ranked
    found = judged.index.get_indexer(wanted.ravel()).reshape(ranked.shape)
    grades = np.append(judged.to_numpy(), 0)[np.where(ranked < 0, -1, found)]
    judged = judged.sort_values(ascending=False, kind="stable")
    query = judged.index.to_numpy() // len(unit)
    place = judged.groupby(query).cumcount().to_numpy()
    ideal = np.zeros((len(ranked), place.max() + 1), grades.dtype)
    ideal[query, place] = judged
    return grades, ideal


def _asked(dataset: RetrievalDataset) -> np.ndarray:
    """Rows of the queries that have a relevant passage; others have no recall."""
    if not len(rows := np.unique(dataset.pairs[0])):
        raise NvretError(f"data set {dataset.name}: no query has a relevant passage")
    return rows


class _Vectors:
    """Vectors of texts of one kind, each encoded once."""

    def __init__(
        self, encoder: Encoder, texts: Iterable[str], kind: str, length: int | None, progress: bool
    ) -> None:
        self.rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encode = partial(encoder.encode, kind=kind, max_length=length, progress=progress)
        if processes.world()[1] == 1:
            self.vectors = encode(list(self.rows))
            return
        from nvret.encode import SHARD
        from nvret.scale.distributed import encode_gathered

        self.vectors = encode_gathered(encode, list(self.rows), SHARD)

    def of(self, texts: list[str]) -> np.ndarray:
        """(N, D) of some of the texts; no copy where they are neighbours."""
        rows = np.fromiter((self.rows[text] for text in texts), np.int64, len(texts))
        near = len(rows) and (np.diff(rows) == 1).all()
        return self.vectors[rows[0] : rows[-1] + 1] if near else self.vectors[rows]


def _check_k(k: Sequence[int]) -> list[int]:
    cuts = sorted(set(k))
    if not cuts or any(isinstance(cut, bool) or int(cut) != cut or cut < 1 for cut in cuts):
        raise NvretError(f"k is {k!r}, expected one or more whole numbers of at least 1")
    return [int(cut) for cut in cuts]
