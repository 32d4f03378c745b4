"""Retrieval scores per query, by mteb's own task and metric classes.

A data set becomes an ``AbsTaskRetrieval`` of mteb, and an encoder becomes a searcher behind mteb's
search protocol: the texts are encoded by ``nvret.encode``, the passages are found by the exact
search of ``nvret.search``, and the numbers come out of the metric code that the MTEB leaderboard
runs. A ranking that no encoder made (BM25, a reranker) takes the same road.

mteb keeps means rounded to five digits under a model's *name*. Here the scores of every query are
kept, since intervals and paired comparisons need them, under a hash of weights, texts and code.
Importing mteb takes seconds, so that it waits for the first evaluation.

[mteb_tasks] Our encoders and data sets in the terms of mteb: tasks, searchers, scores per query.

mteb takes seconds to import and minds neither its host's random state nor its home folder. It is
imported here only, inside of functions, under ``isolated``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvret.utils import recipes, store
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval

    from nvret.data import RetrievalDataset
    from nvret.encode import Encoder


METRICS = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}"}  # trec_eval's names
Results = dict[str, dict[str, float]]  # query id → passage id → score, as mteb has it


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


class EncoderSearch:
    """Our encoder and our exact search behind ``mteb.models.SearchProtocol``."""

    def __init__(
        self, encoder: Encoder, lengths: dict[str, int | None], cache: bool, progress: bool
    ) -> None:
        self.mteb_model_meta = _model_meta()
        self.encoder, self.lengths, self.cache, self.progress = encoder, lengths, cache, progress

    def _encode(self, rows: Any, kind: str) -> np.ndarray:
        from nvret.encode import embed

        return embed(
            self.encoder,
            _texts(rows),
            kind,
            max_length=self.lengths[kind],
            cache=self.cache,
            progress=self.progress,
        )

    def index(self, corpus: Any, **_: Any) -> None:
        self.passage_ids = np.array(corpus["id"][:], dtype=object)
        self.passages = self._encode(corpus, "passage")

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> Results:
        from nvret import search

        if top_ranked is not None:
            raise NvretError("reranking tasks come with their own candidates; not supported here")
        vectors = self._encode(queries, "query")
        found = search.top_k(
            vectors, self.passages, top_k, device=self.encoder.device, progress=self.progress
        )
        return _results(queries["id"][:], self.passage_ids, found.ids.numpy(), found.scores.numpy())


class RankingSearch:
    """A ranking from elsewhere behind ``mteb.models.SearchProtocol``."""

    def __init__(self, ids: np.ndarray, scores: np.ndarray, rows: dict[str, int]) -> None:
        self.mteb_model_meta = _model_meta()
        self.ids, self.scores, self.rows = ids, scores, rows

    def index(self, corpus: Any, **_: Any) -> None:
        self.passage_ids = np.array(corpus["id"][:], dtype=object)

    def search(self, queries: Any, **_: Any) -> Results:
        rows = [self.rows[query] for query in queries["id"][:]]
        return _results(queries["id"][:], self.passage_ids, self.ids[rows], self.scores[rows])


def _results(
    query_ids: Sequence[str], passage_ids: np.ndarray, ids: np.ndarray, scores: np.ndarray
) -> Results:
    """(Q, k) rows and scores → mteb's nested dictionaries; a row of -1 is left out."""
    return {
        query: dict(zip(passage_ids[row[row >= 0]], values[row >= 0].tolist(), strict=True))
        for query, row, values in zip(query_ids, ids, scores, strict=True)
    }


def _texts(rows: Any) -> list[str]:
    """The texts of a ``datasets.Dataset``, a title in front of its passage as in BEIR."""
    texts = rows["text"][:] if "text" in rows.column_names else [None]
    if "instruction" in rows.column_names or not all(isinstance(text, str) for text in texts):
        raise NvretError(f"only plain text retrieval is supported, not {rows.features}")
    if "title" not in rows.column_names:
        return texts
    titles = (title or "" for title in rows["title"][:])
    return [f"{title} {text}".strip() for title, text in zip(titles, texts, strict=True)]


def local_task(dataset: RetrievalDataset, k: list[int]) -> AbsTaskRetrieval:
    """The data set as a task of mteb that is already loaded: nothing asks a hub."""
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
    data = RetrievalSplitData(
        corpus=Dataset(pa.table({"id": dataset.corpus["id"], "text": dataset.passages})),
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


def hub_task(name: str) -> AbsTaskRetrieval:
    import mteb
    from mteb.abstasks import AbsTaskRetrieval

    try:
        task = mteb.get_task(name)
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise NvretError(f"mteb task {said}") from error  # it names the nearest ones
    if not isinstance(task, AbsTaskRetrieval) or task.metadata.type != "Retrieval":
        raise NvretError(f"task {name} is {task.metadata.type}, expected Retrieval")
    return task


def score_queries(
    task: AbsTaskRetrieval, searcher: Any, split: str, subset: str, k: list[int]
) -> pa.Table:
    """Run the task; its hook for task-specific scores sees every query before the means are taken.

    The task's own ``evaluate`` is called, not ``mteb.evaluate``, which would look for a cached
    result by the model's name, a carbon tracker and the data set's successors first.
    """
    from mteb._evaluators.retrieval_metrics import mrr

    columns: dict[str, Any] = {}
    own_scores = task.task_specific_scores

    def keep(scores: dict, qrels: dict, results: Results, **where: Any) -> dict[str, float]:
        columns["query_id"] = list(results)
        for name, trec_name in METRICS.items():
            for cut in k:
                column = [scores[query][trec_name.format(cut)] for query in results]
                columns[f"{name}_at_{cut}"] = column
        for cut, column in zip(k, mrr(qrels, results, k).values(), strict=True):
            columns[f"mrr_at_{cut}"] = column
        return own_scores(scores, qrels, results, **where)

    task.task_specific_scores = keep
    task.evaluate(searcher, split, [subset], encode_kwargs={})
    return pa.table(columns)


def _model_meta() -> Any:
    """mteb asks for a name, which it writes beside predictions; ours are kept by content."""
    from mteb.models import ModelMeta

    return ModelMeta.create_empty({"name": "nvret/local"})


@dataclass(frozen=True)
class Evaluation:
    """The scores of one system on one data set.

    dataset: name of the data set or mteb task.
    scores: one row a query, in the order of the data set: ``query_id`` (string), then float64 in
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
    cache: bool = True,
    cache_embeddings: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Encode queries and passages, search exactly, score every query.

    Queries without a relevant passage have no recall and are left out, as in mteb. Passages with
    equal scores stand in descending order of their id, as in trec_eval and mteb.

    Args:
        encoder: ``nvret.encode.Encoder``; its own prompts are used for queries and passages.
        dataset: graded relevance counts in NDCG; a score of 0 or less is "not relevant".
        query_max_length: in tokens; None is the encoder's own limit.
        passage_max_length: likewise.
        k: ranks at which the metrics are cut; the search goes as deep as the largest.
        cache: take and keep the result in the store. Its key is the content of the weights, of
            the data set and of the code, so that two checkpoints never share a result.
        cache_embeddings: also keep the vectors; worth it for teachers, which are mined with too.
        progress: show bars.
    Raises:
        NvretError: bad ``k``, no query with a relevant passage, an encoder that returns NaN.
    Source: Thakur et al. 2021 (BEIR), arXiv 2104.08663; Muennighoff et al. 2023 (MTEB), 2210.07316.
    """
    lengths = {
        "query": encoder.limit(query_max_length),
        "passage": encoder.limit(passage_max_length),
    }
    cuts = _check_k(k)

    def compute() -> pa.Table:
        with isolated():
            task = local_task(dataset, cuts)
            searcher = EncoderSearch(encoder, lengths, cache_embeddings, progress)
            return score_queries(task, searcher, "test", "default", cuts)

    if not cache:
        return Evaluation(dataset.name, compute())
    key = {"dataset": dataset.fingerprint, **_encoder_key(encoder, lengths, cuts)}
    return Evaluation(dataset.name, _stored(key, compute))


def evaluate_ranking(
    ids: np.ndarray, scores: np.ndarray, dataset: RetrievalDataset, *, k: Sequence[int] = (10, 100)
) -> Evaluation:
    """Score a ranking that is already there, such as BM25's.

    Args:
        ids: (Q, depth) integer rows of ``dataset.corpus``, one row a query of ``dataset.queries``;
            -1 where a query has fewer results. A depth below the largest k lowers its recall.
        scores: (Q, depth) higher is better; compared as float32, which is what trec_eval reads.
            The scores alone decide the order; ties stand in descending order of the passage id.
        dataset: as in ``evaluate``.
        k: as in ``evaluate``.
    Raises:
        NvretError: shapes that do not match, an id outside of the corpus or twice in a row, NaN.
    """
    ids, scores = np.asarray(ids), np.asarray(scores, dtype=np.float32)
    _check_ranking(ids, scores, dataset)
    cuts = _check_k(k)
    rows = dict(zip(dataset.queries["id"].to_pylist(), range(len(ids)), strict=True))
    with isolated():
        task = local_task(dataset, cuts)
        searcher = RankingSearch(ids, scores, rows)
        table = score_queries(task, searcher, "test", "default", cuts)
    return Evaluation(dataset.name, table)


def evaluate_hub_task(
    encoder: Encoder,
    name: str,
    *,
    query_max_length: int | None,
    passage_max_length: int | None,
    split: str | None = None,
    subset: str | None = None,
    k: Sequence[int] = (10, 100),
    cache: bool = True,
    progress: bool = True,
) -> Evaluation:
    """``evaluate`` on one of mteb's own retrieval tasks, which a hub serves.

    Args:
        encoder: as in ``evaluate``.
        name: as mteb spells it: "NQ", "FiQA2018", "HotpotQA", ...
        query_max_length: as in ``evaluate``.
        passage_max_length: as in ``evaluate``.
        split: of the task; default: its only one.
        subset: of the task, such as a language; default: its only one.
        k: ranks among those that the task computes (1, 3, 5, 10, 20, 100, 1000).
        cache: as in ``evaluate``; the data set counts by the revision that mteb pins.
        progress: show bars.
    Raises:
        NvretError: an unknown task, one that is not plain retrieval, data that cannot be loaded.
    """
    lengths = {
        "query": encoder.limit(query_max_length),
        "passage": encoder.limit(passage_max_length),
    }
    cuts = _check_k(k)
    with isolated():
        task = hub_task(name)
        if missing := set(cuts) - set(task.k_values):
            raise NvretError(f"task {name} has no k = {min(missing)}, only {list(task.k_values)}")
        split = _only(split, task.eval_splits, f"task {name}: split")
        subset = _only(subset, task.hf_subsets, f"task {name}: subset")
        task.hf_subsets = [subset]  # the others are not loaded

        def compute() -> pa.Table:
            try:
                task.load_data()
            except OSError as error:  # covers connection, timeout, not found, offline mode
                raise NvretError(
                    f"task {name}: {task.metadata.dataset['path']} could not be loaded from the "
                    f"hub or its cache ({type(error).__name__}: {error})"
                ) from error
            searcher = EncoderSearch(encoder, lengths, False, progress)
            return score_queries(task, searcher, split, subset, cuts)

        if not cache:
            return Evaluation(name, compute())
        data = {**task.metadata.dataset, "task": name, "split": split, "subset": subset}
        key = {"dataset": data, **_encoder_key(encoder, lengths, cuts)}
        return Evaluation(name, _stored(key, compute))


def _stored(key: dict[str, Any], compute: Callable[[], pa.Table]) -> pa.Table:
    def build(folder: Path) -> None:
        pq.write_table(compute(), folder / "scores.parquet")

    return pq.read_table(store.stage("evaluation", key, build) / "scores.parquet")


def _encoder_key(encoder: Encoder, lengths: dict[str, int | None], k: list[int]) -> dict[str, Any]:
    """All that a score depends on, apart from the data set."""
    packages = {name: importlib.metadata.version(name) for name in ("mteb", "pytrec-eval-terrier")}
    return {
        "encoder": encoder.fingerprint,
        "lengths": lengths,
        "k": k,
        "recipe": recipes.versions("vectors", "search", "evaluation"),
        **packages,
    }


def _only(chosen: str | None, available: Sequence[str], what: str) -> str:
    if chosen is None and len(available) == 1:
        return available[0]
    if chosen not in available:
        raise NvretError(f"{what} is {chosen!r}, expected one of {', '.join(available)}")
    return chosen


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
