"""Approximate search with a faiss index, and what it misses: for corpora too large to scan.

An index (inverted lists, a graph of neighbours) reads a few of the passages for a query and may
overlook some. How many is measured on a sample of the queries against the exact search, and written
to the provenance of the mined negatives.

Source: Douze et al. 2024, The Faiss library, arXiv 2401.08281; HNSW: arXiv 1603.09320.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from nvret import search
from nvret.scale.distributed import by_query
from nvret.scale.screen import Screened
from nvret.search import SearchResult
from nvret.teachers import DenseScorer
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError
from nvret.utils.store import fingerprint

BATCH = 4096  # queries that are searched at once
ADDED = 65536  # passages that are read and put into the index at once
TRAINED_ON = 200_000  # passages that an inverted index is fitted to, at most
SAMPLE = 200  # queries whose exact result is computed
DEEPEST_ON_GPU = 2048  # results of a query that faiss can give there
SEARCHES = 8  # at most, each twice as deep, for queries with too few candidates that are allowed


@dataclass(frozen=True)
class Index:
    """How to search approximately.

    Attributes:
        factory: faiss's name of the index: "HNSW32", "IVF4096,Flat", "IVF4096,PQ64", ...
        probes: lists (IVF) or candidates (HNSW) that are looked at for each query; more find more.
    """

    factory: str
    probes: int = 64

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise NvretError(f"probes is {self.probes}, expected at least 1")

    def scorer(self, name: str, key: list[Any], *vectors: Any) -> IndexedScorer:
        """As ``nvret.teachers.dense_scorer``."""
        return IndexedScorer(name, fingerprint(*key, vars(self)), *vectors, index=self)


def named(name: str | None, probes: int) -> Index | Screened | None:
    """How to search: exactly, with "screen" exactly behind one, else by that index of faiss's."""
    if name == "screen":
        return Screened()
    return Index(name, probes) if name else None


class Searcher:
    """A corpus, (N, D) float32 vectors, in an index; on a GPU if faiss has any.

    Raises:
        NvretError: faiss is not installed, an unknown factory, fewer passages than the index needs.
    """

    def __init__(self, corpus: np.ndarray, index: Index) -> None:
        faiss = _faiss()
        self.corpus, self.index = corpus, index
        try:
            built = faiss.index_factory(corpus.shape[1], index.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise NvretError(f"index {index.factory!r} is none of faiss's: {error}") from error
        graph = "HNSW" in index.factory
        on_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0 and not graph
        if on_gpu:  # one a process: torchrun gives each its own
            gpu = torch.cuda.current_device() if torch.cuda.is_available() else 0
            built = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, built)
        rows = np.linspace(0, len(corpus) - 1, min(len(corpus), TRAINED_ON)).astype(np.int64)
        try:
            built.train(np.ascontiguousarray(corpus[rows], np.float32))
        except RuntimeError as error:
            raise NvretError(
                f"index {index.factory!r} cannot be fitted to {len(corpus)} passages: {error}"
            ) from error
        for start in range(0, len(corpus), ADDED):
            built.add(np.ascontiguousarray(corpus[start : start + ADDED], np.float32))
        if graph or "IVF" in index.factory:
            space = faiss.GpuParameterSpace() if on_gpu else faiss.ParameterSpace()
            name = "efSearch" if graph else "nprobe"
            space.set_index_parameter(built, name, index.probes)
        self._built = built
        self.deepest = min(DEEPEST_ON_GPU, len(corpus)) if on_gpu else len(corpus)

    def top_k(
        self,
        queries: np.ndarray,
        k: int,
        *,
        ceiling: np.ndarray | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
        progress: bool = False,
    ) -> SearchResult:
        """As ``nvret.search.top_k``, but may miss some; scores are those of the index.

        The index knows no ceiling. It is asked for more than k, and again for twice as many where
        too many of them are at or above the ceiling or excluded. A GPU's index has a limit to that;
        what it leaves unfilled is searched exactly.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        limits = np.full(len(queries), np.inf) if ceiling is None else np.asarray(ceiling)
        exclude = [()] * len(queries) if exclude is None else exclude
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        depth, rows = k + max(map(len, exclude), default=0), np.arange(len(queries))
        with progress_bar(total=len(rows), desc="search", unit="query", show=progress) as bar:
            for _ in range(SEARCHES):
                depth = min(depth, self.deepest)
                parts = np.split(rows, range(BATCH, len(rows), BATCH))
                asked = queries, depth, limits, exclude
                left = np.concatenate([self._fill(ids, scores, part, *asked) for part in parts])
                bar.update(len(rows) - len(left))
                rows = left
                if not len(rows) or depth == self.deepest:
                    break
                depth *= 2
        if len(rows) and self.deepest < len(self.corpus):
            options = {"ceiling": limits[rows], "exclude": [exclude[row] for row in rows]}
            ids[rows], scores[rows] = search.top_k(queries[rows], self.corpus, k, **options)
        return SearchResult(torch.from_numpy(ids), torch.from_numpy(scores))

    def _fill(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        rows: np.ndarray,
        queries: np.ndarray,
        depth: int,
        limits: np.ndarray,
        exclude: Sequence[Sequence[int]],
    ) -> np.ndarray:
        """Write the results of the queries ``rows``; return those that a deeper search may fill."""
        k = ids.shape[1]
        values, found = self._built.search(queries[rows], depth)
        full = found[:, -1] >= 0  # fewer are all that the index can reach with these probes
        allowed = (found >= 0) & (values < limits[rows, None])
        for place in np.flatnonzero([len(exclude[row]) for row in rows]):
            allowed[place] &= ~np.isin(found[place], exclude[rows[place]])
        values = np.where(allowed, values, -np.inf).astype(np.float32)
        found = np.where(allowed, found, -1)
        order = np.lexsort((found, -values), axis=1)[:, :k]
        ids[rows, : order.shape[1]] = np.take_along_axis(found, order, 1)
        scores[rows, : order.shape[1]] = np.take_along_axis(values, order, 1)
        return rows[full & (allowed.sum(1) < k)]

    def facts(self, queries: np.ndarray, k: int, device: str | torch.device = "cpu") -> dict:
        """What the index is, and its recall: the share of the exact k best that it finds.

        Measured on at most ``SAMPLE`` queries, evenly spaced.
        """
        rows = np.unique(np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).astype(int))
        sample = np.ascontiguousarray(queries[rows])
        exact = search.top_k(sample, self.corpus, k, device=device).ids.numpy()
        found = self.top_k(sample, k).ids.numpy()
        hits = [len(np.intersect1d(a[a >= 0], b)) for a, b in zip(exact, found, strict=True)]
        recall = sum(hits) / max(1, int((exact >= 0).sum()))
        return {**vars(self.index), "recall": round(recall, 4), "k": k, "questions": len(rows)}


@dataclass(frozen=True)
class IndexedScorer(DenseScorer):
    """A teacher's vectors in an index."""

    index: Index = None

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.corpus, self.index)

    def approximation(self, k: int) -> dict[str, Any]:
        """What the index is, and how much of the k best it finds."""
        return self._searcher.facts(self.queries, k, self.device)

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False):
        def top_k(rows: slice) -> SearchResult:
            limits = None if ceiling is None else ceiling[rows]
            excluded = None if exclude is None else exclude[rows]
            vectors = self.queries[query_rows[rows]]
            return self._searcher.top_k(
                vectors, k, ceiling=limits, exclude=excluded, progress=progress
            )

        return by_query(len(query_rows), top_k)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise NvretError(
            "an approximate index needs faiss; install nvret with its extra 'faiss' or 'gpu'"
        ) from error
    return faiss
