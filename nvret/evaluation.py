"""Retrieval scores per query, by mteb's own task and by trec_eval, which mteb asks.

The texts are encoded by ``nvret.encode``, the passages are found by the exact search of
``nvret.search``. A data set becomes an ``AbsTaskRetrieval`` of mteb (`nvret.io.mteb_task`), and the
ranking a searcher behind mteb's search protocol, so that the numbers come out of the code that the
MTEB leaderboard runs. A ranking that no encoder made (BM25, a reranker) takes the same road. Of
many models (`evaluate_all`) trec_eval scores the rankings without mteb around it: the same numbers
in a fifth of the time.

mteb itself keeps means, rounded to five digits, under a model's *name*. Here the scores of every
query are returned, since intervals and paired comparisons need them.

Source: Thakur et al. 2021 (BEIR), arXiv 2104.08663; Muennighoff et al. 2023 (MTEB), 2210.07316.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.utils import processes
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

METRICS = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}"}  # trec_eval's names
Results = dict[str, dict[str, float]]  # query id -> passage id -> score, as trec_eval has it


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
    from nvret.io import mteb_task

    (found,) = evaluate_all(encoder, [dataset], *lengths, k=k, progress=progress)
    return _scored(dataset, *found.ranking, _check_k(k), mteb_task.score)


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

    The vectors of all of them are in memory together, as one (N, D) matrix. trec_eval is asked for
    these metrics alone, where mteb would compute forty more.
    """
    from nvret.teachers import DenseScorer  # and with it torch

    cuts, by_size = _check_k(k), sorted(datasets, key=lambda d: -d.corpus.num_rows)
    asked = [[d.query_texts[row] for row in np.unique(d.pairs[0])] for d in datasets]
    texts = map(itertools.chain.from_iterable, (asked, (d.passages for d in by_size)))
    queries, passages = (
        _Vectors(encoder, some, kind, length, progress)
        for some, kind, length in zip(
            texts, ("query", "passage"), (query_max_length, passage_max_length), strict=True
        )
    )
    evaluations = []
    for dataset, own in zip(datasets, asked, strict=True):
        if not own:
            raise NvretError(f"data set {dataset.name}: no query has a relevant passage")
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
    _check_ranking(ids, scores, dataset)
    from nvret.io import mteb_task

    asked = np.unique(dataset.pairs[0])
    return _scored(dataset, ids[asked], scores[asked], _check_k(k), mteb_task.score)


def collapsed(
    evaluation: Evaluation, dataset: RetrievalDataset, *, k: Sequence[int] = (10,)
) -> Evaluation:
    """The same ranking scored again, with each near-duplicate cluster as one passage.

    Only the best-ranked passage of a cluster stands in the ranking, and it is as relevant as the
    most relevant of the cluster: an unlabelled copy of the answer counts as the answer.

    Args:
        evaluation: of ``dataset``, whose corpus has the column ``cluster``.
    """
    part = dataset.select(evaluation.scores["query_id"].to_pylist())
    ids, scores = evaluation.ranking
    passages = part.corpus.select(["id", "cluster"]).to_pandas()
    row, names = pd.factorize(passages["cluster"].astype(str))
    descending = -np.argsort(np.argsort(passages["id"].to_numpy(str)))
    order = np.lexsort((descending[ids], -scores))  # as trec_eval reads them
    ranked = np.take_along_axis(np.where(ids < 0, -1, row[ids]), order, 1)
    apart = ranked + 1 + (len(names) + 1) * np.arange(len(ranked))[:, None]
    first = np.unique(apart, return_index=True)[1]
    kept = np.full_like(ranked, -1)
    kept.flat[first] = ranked.flat[first]
    judged = part.qrels.to_pandas()
    judged["corpus_id"] = judged["corpus_id"].map(
        dict(zip(passages["id"], names[row], strict=True))
    )
    best = judged.groupby(["query_id", "corpus_id"], as_index=False)["score"].max()
    corpus = pa.table({"id": names, "title": [""] * len(names), "text": names})
    clusters = RetrievalDataset(dataset.name, corpus, part.queries, pa.Table.from_pandas(best))
    places = np.broadcast_to(-np.arange(ids.shape[1], dtype=np.float32), ids.shape)
    return _scored(clusters, kept, places, _check_k(k))


def judgements(dataset: RetrievalDataset) -> dict[str, dict[str, int]]:
    """Query id -> passage id -> relevance, where it is above 0: a query without one has no recall.

    Raises:
        NvretError: no query has a relevant passage.
    """
    qrels: dict[str, dict[str, int]] = {}
    columns = (dataset.qrels[name].to_pylist() for name in ("query_id", "corpus_id", "score"))
    for query, passage, score in zip(*columns, strict=True):
        if score > 0:
            qrels.setdefault(query, {})[passage] = score
    if not qrels:
        raise NvretError(f"data set {dataset.name}: no query has a relevant passage")
    return qrels


def _trec_eval(_: object, qrels: Results, results: Results, k: Sequence[int]) -> Results:
    """Query -> trec_eval's name of a metric -> value, of these metrics alone."""
    import pytrec_eval

    cuts = ",".join(map(str, k))
    asked = {f"{name.removesuffix('_{}')}.{cuts}" for name in METRICS.values()}
    return pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(results)


def _scored(
    dataset: RetrievalDataset,
    ids: np.ndarray,
    scores: np.ndarray,
    k: list[int],
    score: Callable[..., Results] = _trec_eval,
) -> Evaluation:
    """Score the ranking of the queries that have a relevant passage, in the data set's order."""
    qrels = judgements(dataset)
    passages = np.array(dataset.corpus["id"].to_pylist(), dtype=object)
    queries = [query for query in dataset.queries["id"].to_pylist() if query in qrels]
    results = {
        query: dict(zip(passages[own[own >= 0]], values[own >= 0].tolist(), strict=True))
        for query, own, values in zip(queries, ids, scores, strict=True)
    }
    found = score(dataset, qrels, results, k)
    columns: dict[str, list] = {"query_id": queries}
    for name, trec_name in METRICS.items():
        for cut in k:
            columns[f"{name}_at_{cut}"] = [found[query][trec_name.format(cut)] for query in queries]
    ranks = [_first_relevant(results[query], qrels[query]) for query in queries]
    for cut in k:
        columns[f"mrr_at_{cut}"] = [1 / rank if rank <= cut else 0.0 for rank in ranks]
    return Evaluation(dataset.name, pa.table(columns), (ids, scores))


def _first_relevant(scores: dict[str, float], judged: dict[str, int]) -> float:
    """Rank of the first relevant passage, ties in descending order of the id; inf without one."""
    ranked = sorted(scores, key=lambda passage: (scores[passage], passage), reverse=True)
    ranks = (rank for rank, passage in enumerate(ranked, 1) if judged.get(passage, 0) > 0)
    return next(ranks, float("inf"))


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
        from nvret.scale.embeddings import encode_gathered

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


def _check_ranking(ids: np.ndarray, scores: np.ndarray, dataset: RetrievalDataset) -> None:
    queries, passages = dataset.queries.num_rows, dataset.corpus.num_rows
    if ids.ndim != 2 or ids.shape != scores.shape or len(ids) != queries:
        raise NvretError(
            f"ids have shape {ids.shape} and scores {scores.shape}, "
            f"expected ({queries}, depth) for the {queries} queries of {dataset.name}"
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
