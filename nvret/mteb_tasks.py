"""Our encoders and data sets in the terms of mteb: tasks, searchers, scores per query.

mteb takes seconds to import and minds neither its host's random state nor its home folder. It is
imported here only, inside of functions, under ``isolated``.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nvret import store
from nvret.errors import NvretError

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
        from nvret.embeddings import embed

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
