"""Retrieval scores per query, by mteb's own task and by trec_eval, which mteb asks.

The texts are encoded by ``nvret.encode``, the passages are found by the exact search of
``nvret.search``. A data set becomes an ``AbsTaskRetrieval`` of mteb (`nvret.io.mteb_task`), and the
ranking a searcher behind mteb's search protocol, so that the numbers come out of the code that the
MTEB leaderboard runs. A ranking that no encoder made (BM25, a reranker) takes the same road. Of
many models (`evaluate_all`) trec_eval scores the rankings without mteb around it: the same numbers
in a sixth of the time.

mteb itself keeps means, rounded to five digits, under a model's *name*. Here the scores of every
query are returned, since intervals and paired comparisons need them.

Source: Thakur et al. 2021 (BEIR), arXiv 2104.08663; Muennighoff et al. 2023 (MTEB), 2210.07316.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.utils import processes
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

METRICS = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}"}  # trec_eval's names
Results = dict[str, dict[str, float]]  # query id -> passage id -> score, as mteb has it


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
    names = found.scores["query_id"].to_pylist()
    rows = dict(zip(names, range(len(names)), strict=True))
    return _score(dataset, _RankingSearch(*found.ranking, rows), _check_k(k))


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
        evaluations.append(_by_trec_eval(dataset, *ranking, cuts))
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
    rows = dict(zip(dataset.queries["id"].to_pylist(), range(len(ids)), strict=True))
    return _score(dataset, _RankingSearch(ids, scores, rows), _check_k(k))


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
    return _by_trec_eval(clusters, kept, places, _check_k(k))


def _by_trec_eval(
    dataset: RetrievalDataset, ids: np.ndarray, scores: np.ndarray, k: list[int]
) -> Evaluation:
    """Score the ranking of the queries that have a relevant passage, in the data set's order."""
    import pytrec_eval

    from nvret.io import mteb_task

    qrels = mteb_task.judgements(dataset)
    passages = np.array(dataset.corpus["id"].to_pylist(), dtype=object)
    queries = [query for query in dataset.queries["id"].to_pylist() if query in qrels]
    results = _nested(queries, passages, ids, scores)
    cuts = ",".join(map(str, k))
    asked = {f"{trec_name.removesuffix('_{}')}.{cuts}" for trec_name in METRICS.values()}
    found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(results)
    columns = _columns(found, qrels, results, k)
    return Evaluation(dataset.name, pa.table(columns), (ids, scores))


def _nested(queries: Sequence[str], passages: np.ndarray, ids: Any, scores: Any) -> Results:
    """(Q, k) rows and scores as nested dictionaries; a row of -1 is left out."""
    return {
        query: dict(zip(passages[r[r >= 0]], s[r >= 0].tolist(), strict=True))
        for query, r, s in zip(queries, ids, scores, strict=True)
    }


def _columns(
    scores: dict[str, dict[str, float]],
    qrels: dict[str, dict[str, int]],
    results: Results,
    k: list[int],
) -> dict[str, list]:
    """What trec_eval found, as columns of `Evaluation.scores`; it has no MRR at a rank."""
    columns: dict[str, list] = {"query_id": list(results)}
    for name, trec_name in METRICS.items():
        for cut in k:
            columns[f"{name}_at_{cut}"] = [scores[q][trec_name.format(cut)] for q in results]
    ranks = [_first_relevant(results[query], qrels[query]) for query in results]
    for cut in k:
        columns[f"mrr_at_{cut}"] = [1 / rank if rank <= cut else 0.0 for rank in ranks]
    return columns


def _score(dataset: RetrievalDataset, searcher: _RankingSearch, k: list[int]) -> Evaluation:
    """Run the task; its hook for task-specific scores sees every query before the means are taken.

    The task's own ``evaluate`` is called, not ``mteb.evaluate``, which would look for a cached
    result by the model's name, a carbon tracker and the data set's successors first.
    """
    from nvret.io import mteb_task  # mteb takes seconds to import

    columns: dict[str, list] = {}

    def keep(scores: dict, qrels: dict, results: Results, **_: Any) -> dict[str, float]:
        columns.update(_columns(scores, qrels, results, k))
        return {}

    with mteb_task.isolated():
        from mteb.models import ModelMeta

        # mteb asks for a name, to write beside predictions
        searcher.mteb_model_meta = ModelMeta.create_empty({"name": "nvret/local"})
        task = mteb_task.local_task(dataset, k)
        task.task_specific_scores = keep
        task.evaluate(searcher, "test", ["default"], encode_kwargs={})
    return Evaluation(dataset.name, pa.table(columns), searcher.ranking)


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


class _RankingSearch:
    """A ranking that is there, behind mteb's ``SearchProtocol``."""

    mteb_model_meta: Any

    def __init__(self, ids: np.ndarray, scores: np.ndarray, rows: dict[str, int]) -> None:
        self.ids, self.scores, self.rows = ids, scores, rows

    def index(self, corpus: Any, **_: Any) -> None:
        self.passage_ids = np.array(corpus["id"][:], dtype=object)

    def search(self, queries: Any, **_: Any) -> Results:
        rows = [self.rows[query] for query in queries["id"][:]]
        self.ranking = self.ids[rows], self.scores[rows]
        return _nested(queries["id"][:], self.passage_ids, *self.ranking)


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
