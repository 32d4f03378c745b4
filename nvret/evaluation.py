"""Retrieval scores per query, by mteb's own task and metric classes.

A data set becomes an ``AbsTaskRetrieval`` of mteb, and an encoder becomes a searcher behind mteb's
search protocol: the texts are encoded by ``nvret.encode``, the passages are found by the exact
search of ``nvret.search``, and the numbers come out of the metric code that the MTEB leaderboard
runs. A ranking that no encoder made (BM25, a reranker) takes the same road.

mteb itself keeps means, rounded to five digits, under a model's *name*. Here the scores of every
query are returned, since intervals and paired comparisons need them. mteb takes seconds to import,
reseeds the global random state and writes to the home folder: it is imported here only, inside of
functions, under `isolated`.

Source: Thakur et al. 2021 (BEIR), arXiv 2104.08663; Muennighoff et al. 2023 (MTEB), 2210.07316.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.utils import processes, store
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval

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

    >>> table = pa.table({"query_id": ["a", "b"], "ndcg_at_10": [1.0, 0.5]})
    >>> Evaluation("toy", table).summary
    {'ndcg_at_10': 0.75}
    """

    dataset: str
    scores: pa.Table

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
        query_max_length: in tokens; None is the encoder's own limit.
        passage_max_length: likewise.
        k: ranks at which the metrics are cut; the search goes as deep as the largest.
        progress: show bars.
    Raises:
        NvretError: bad ``k``, no query with a relevant passage, an encoder that returns NaN.
    """
    lengths = {"query": query_max_length, "passage": passage_max_length}
    return _score(dataset, _EncoderSearch(encoder, lengths, progress), _check_k(k))


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


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """mteb imported, and kept from what it does to its host.

    Its import makes ``$MTEB_CACHE`` or ``~/.cache/mteb``; ours lies in our cache. Its tasks seed
    Python's, NumPy's and torch's generators, at import too: an evaluation between two training
    epochs would replay the first one's shuffling.
    """
    import torch

    os.environ.setdefault("MTEB_CACHE", str(store.cache_dir() / "mteb"))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            import mteb  # noqa: F401

            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def local_task(dataset: RetrievalDataset, k: Sequence[int]) -> AbsTaskRetrieval:
    """The data set as a task of mteb that is already loaded: nothing asks a hub. Under `isolated`.

    Raises:
        NvretError: no query has a relevant passage.
    """
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    qrels: dict[str, dict[str, int]] = {}
    columns = (dataset.qrels[name].to_pylist() for name in ("query_id", "corpus_id", "score"))
    for query, passage, score in zip(*columns, strict=True):
        if score > 0:
            qrels.setdefault(query, {})[passage] = score
    if not qrels:
        raise NvretError(f"data set {dataset.name}: no query has a relevant passage")
    answerable = pa.array([query in qrels for query in dataset.queries["id"].to_pylist()])
    passages = pa.array(dataset.passages, pa.large_string())  # more than 2 GiB, perhaps
    data = RetrievalSplitData(
        corpus=Dataset(pa.table([dataset.corpus["id"], passages], ["id", "text"])),
        queries=Dataset(dataset.queries.select(["id", "text"]).filter(answerable)),
        relevant_docs=qrels,
        top_ranked=None,
    )

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalRetrieval",
            description="A data set on this machine.",
            dataset={"path": "nvret/local", "revision": dataset.fingerprint},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=f"ndcg_at_{k[0]}",
        )
        k_values = sorted({1, *k})  # mteb reports the recall at 1 under a name of its own

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    return LocalRetrieval()


def _score(dataset: RetrievalDataset, searcher: Any, k: list[int]) -> Evaluation:
    """Run the task; its hook for task-specific scores sees every query before the means are taken.

    The task's own ``evaluate`` is called, not ``mteb.evaluate``, which would look for a cached
    result by the model's name, a carbon tracker and the data set's successors first.
    """
    columns: dict[str, Any] = {}

    def keep(scores: dict, qrels: dict, results: Results, **_: Any) -> dict[str, float]:
        columns["query_id"] = list(results)
        for name, trec_name in METRICS.items():
            for cut in k:
                column = [scores[query][trec_name.format(cut)] for query in results]
                columns[f"{name}_at_{cut}"] = column
        ranks = [_first_relevant(results[query], qrels[query]) for query in results]
        for cut in k:
            columns[f"mrr_at_{cut}"] = [1 / rank if rank <= cut else 0.0 for rank in ranks]
        return {}

    with isolated():
        if isinstance(searcher, _Search):  # mteb asks for a name, to write beside predictions
            from mteb.models import ModelMeta

            searcher.mteb_model_meta = ModelMeta.create_empty({"name": "nvret/local"})
        task = local_task(dataset, k)
        task.task_specific_scores = keep
        task.evaluate(searcher, "test", ["default"], encode_kwargs={})
    return Evaluation(dataset.name, pa.table(columns))


def _first_relevant(scores: dict[str, float], judged: dict[str, int]) -> float:
    """Rank of the first relevant passage, ties in descending order of the id; inf without one."""
    ranked = sorted(scores, key=lambda passage: (scores[passage], passage), reverse=True)
    ranks = (rank for rank, passage in enumerate(ranked, 1) if judged.get(passage, 0) > 0)
    return next(ranks, float("inf"))


class _Search:
    """mteb's ``SearchProtocol``."""

    mteb_model_meta: Any

    def index(self, corpus: Any, **_: Any) -> None:
        self.passage_ids = np.array(corpus["id"][:], dtype=object)

    def _results(self, query_ids: Sequence[str], ids: np.ndarray, scores: np.ndarray) -> Results:
        """(Q, k) rows and scores as mteb's nested dictionaries; a row of -1 is left out."""
        return {
            query: dict(zip(self.passage_ids[r[r >= 0]], s[r >= 0].tolist(), strict=True))
            for query, r, s in zip(query_ids, ids, scores, strict=True)
        }


class _EncoderSearch(_Search):
    """Our encoder and our exact search."""

    def __init__(self, encoder: Encoder, lengths: dict[str, int | None], progress: bool) -> None:
        self.encoder, self.lengths, self.progress = encoder, lengths, progress

    def _encode(self, texts: list[str], kind: str) -> np.ndarray:
        options = {"max_length": self.lengths[kind], "progress": self.progress}
        encode = partial(self.encoder.encode, kind=kind, **options)
        if processes.world()[1] == 1:
            return encode(texts)
        from nvret.encode import SHARD
        from nvret.scale.embeddings import encode_gathered

        return encode_gathered(encode, texts, SHARD)

    def index(self, corpus: Any, **_: Any) -> None:
        super().index(corpus)
        self.passages = self._encode(corpus["text"][:], "passage")

    def search(self, queries: Any, *, top_k: int, **_: Any) -> Results:
        from nvret.teachers import DenseScorer  # and with it torch

        vectors = self._encode(queries["text"][:], "query")
        scorer = DenseScorer("student", "", vectors, self.passages, str(self.encoder.device))
        result = scorer.top_k(np.arange(len(vectors)), top_k, progress=self.progress)
        return self._results(queries["id"][:], result.ids.numpy(), result.scores.numpy())


class _RankingSearch(_Search):
    """A ranking from elsewhere."""

    def __init__(self, ids: np.ndarray, scores: np.ndarray, rows: dict[str, int]) -> None:
        self.ids, self.scores, self.rows = ids, scores, rows

    def search(self, queries: Any, **_: Any) -> Results:
        rows = [self.rows[query] for query in queries["id"][:]]
        return self._results(queries["id"][:], self.ids[rows], self.scores[rows])


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
