"""A data set as mteb has it, and mteb kept from what it does to its host.

mteb takes seconds to import, reseeds the global random state and writes to the home folder: so it
is imported under `isolated` only.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.utils import store

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval

METRICS = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}"}  # trec_eval's names
Results = dict[str, dict[str, float]]  # query id -> passage id -> score, as trec_eval has it


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


def local_task(dataset: RetrievalDataset, qrels: Results, k: Sequence[int]) -> AbsTaskRetrieval:
    """The data set as a task of mteb that is already loaded: nothing asks a hub. Under `isolated`.

    ``qrels`` are its `judgements`.
    """
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

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


def judgements(dataset: RetrievalDataset) -> dict[str, dict[str, int]]:
    """Query id -> passage id -> relevance, where it is above 0."""
    qrels: dict[str, dict[str, int]] = {}
    columns = (dataset.qrels[name].to_pylist() for name in ("query_id", "corpus_id", "score"))
    for query, passage, score in zip(*columns, strict=True):
        if score > 0:
            qrels.setdefault(query, {})[passage] = score
    return qrels


def score(
    dataset: RetrievalDataset, ids: np.ndarray, scores: np.ndarray, k: Sequence[int]
) -> dict[str, np.ndarray]:
    """What mteb's own task says of a ranking: NDCG, recall and MAP of each query, by name.

    The task's own ``evaluate`` is called, since ``mteb.evaluate`` would look for a cached result by
    the model's name first; its hook for task-specific scores sees every query.

    Args:
        ids, scores: (Q, depth) of the queries with a relevant passage, as in ``Evaluation``.
    """
    qrels, passages = judgements(dataset), np.array(dataset.corpus["id"].to_pylist(), dtype=object)
    queries = [query for query in dataset.queries["id"].to_pylist() if query in qrels]
    found: Results = {}

    def keep(scores: dict, *_: Any, **__: Any) -> dict[str, float]:
        found.update(scores)
        return {}

    with isolated():
        from mteb.models import ModelMeta

        searcher = _Ranked()
        searcher.results = {
            query: dict(zip(passages[own[own >= 0]], values[own >= 0].tolist(), strict=True))
            for query, own, values in zip(queries, ids, scores, strict=True)
        }
        # mteb asks for a name, to write beside predictions
        searcher.mteb_model_meta = ModelMeta.create_empty({"name": "nvret/local"})
        task = local_task(dataset, qrels, k)
        task.task_specific_scores = keep
        task.evaluate(searcher, "test", ["default"], encode_kwargs={})
    return {
        f"{name}_at_{cut}": np.array([found[query][theirs.format(cut)] for query in queries])
        for name, theirs in METRICS.items()
        for cut in k
    }


class _Ranked:
    """A ranking that is there, behind mteb's ``SearchProtocol``."""

    mteb_model_meta: Any
    results: Results

    def index(self, corpus: Any, **_: Any) -> None:
        pass

    def search(self, queries: Any, **_: Any) -> Results:
        return {query: self.results[query] for query in queries["id"][:]}
