"""Teachers: something that scores (query, passage) pairs and ranks a corpus.

A teacher is made once and reads any data set; what it then is, a scorer, knows that set's texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from nvret import search
from nvret.bm25 import BM25, tokenize
from nvret.data import RetrievalDataset
from nvret.encode import embed
from nvret.utils import processes
from nvret.utils.store import fingerprint


class Scorer(Protocol):
    """A teacher that has read one data set: rows are rows of its queries and corpus."""

    name: str
    fingerprint: str

    def pair_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """(P,) float32 scores of P (query, passage) pairs."""

    def block_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """(B, U) float32 scores of B queries with U passages each."""

    def top_k(
        self,
        query_rows: np.ndarray,
        k: int,
        ceiling: np.ndarray | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
        *,
        progress: bool = False,
    ) -> search.SearchResult:
        """The k best passages of each row of ``query_rows``, as ``nvret.search.top_k``."""


class Teacher(Protocol):
    """Anything that can read a data set and then score it."""

    name: str

    def prepare(self, dataset: RetrievalDataset, *, progress: bool = True) -> Scorer: ...


def prepare(
    teacher: str | Teacher | Scorer, dataset: RetrievalDataset, *, progress: bool = True
) -> Scorer:
    """A scorer of one data set.

    Args:
        teacher: ``"bm25"``, the name or folder of a model, a teacher, or a scorer that has read
            this data set already.
    """
    if isinstance(teacher, str):
        teacher = BM25Teacher() if teacher == "bm25" else DenseTeacher(teacher)
    return teacher.prepare(dataset, progress=progress) if hasattr(teacher, "prepare") else teacher


@dataclass(frozen=True)
class DenseTeacher:
    """An embedding model; scores are cosines.

    Args:
        name: of the model, as ``nvret.assets`` knows it, or a folder.
        query_max_length, passage_max_length: tokens that are read of each text.
        device, dtype: where and in which precision the model runs; "int8": passages, on a CPU.
        index: `nvret.scale.faiss_index.Index` to search approximately, or
            `nvret.scale.screen.Screened`, exactly but faster; None: exactly.
        prompts: {"query": ..., "passage": ...}, as `Encoder.load` takes them.
        wholes: corpora that data sets are parts of, for `nvret.encode.embed`.
    """

    name: str
    query_max_length: int = 64
    passage_max_length: int = 128
    device: str = "cpu"
    dtype: str = "float32"
    index: Any = None
    prompts: Mapping[str, str] | None = field(default=None, hash=False)
    wholes: Sequence[Sequence[str]] = field(default=(), hash=False, repr=False)

    def prepare(self, dataset: RetrievalDataset, *, progress: bool = True) -> DenseScorer:
        from nvret import assets  # a name leads out of the core here

        encoder = assets.load_encoder(self.name, self.device, self.dtype, self.prompts)
        lengths = [self.query_max_length, self.passage_max_length]
        read = partial(embed, encoder, wholes=self.wholes, progress=progress)
        queries = read(dataset.query_texts, "query", max_length=lengths[0])
        corpus = read(dataset.passages, max_length=lengths[1])
        key = [encoder.fingerprint, lengths, self.dtype]
        scorer = dense_scorer(self.name, key, queries, corpus, self.device, self.index)
        return replace(scorer, prompts=encoder.layout.prompts)


def dense_scorer(
    name: str,
    key: list[Any],
    queries: np.ndarray,
    corpus: np.ndarray,
    device: str = "cpu",
    index: Any = None,
) -> DenseScorer:
    """A scorer of given vectors.

    Args:
        name: for tables.
        key: what the vectors rest on; part of the scorer's fingerprint, as the index is.
        queries, corpus: (Q, D) and (N, D) float32; unit length makes the scores cosines.
        device: of the search.
        index: as of `DenseTeacher`.
    """
    if index is None:
        return DenseScorer(name, fingerprint(*key), queries, corpus, device)
    return index.scorer(name, key, queries, corpus, device)


@dataclass(frozen=True)
class DenseScorer:
    """Vectors of one data set: queries (Q, D) and corpus (N, D)."""

    name: str
    fingerprint: str
    queries: np.ndarray
    corpus: np.ndarray
    device: str = "cpu"
    prompts: dict[str, str] | None = None  # of queries and passages
    search = staticmethod(search.top_k)  # of one process

    def pair_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        scores = np.empty(len(query_rows), np.float32)
        step = 1 << 14  # the gathered vectors of one step stay in the cache
        for start in range(0, len(scores), step):
            rows = slice(start, start + step)
            scores[rows] = np.einsum(
                "pd,pd->p", self.queries[query_rows[rows]], self.corpus[passage_rows[rows]]
            )
        return scores

    def block_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        return self.queries[query_rows] @ self.corpus[passage_rows].T

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False):
        top_k = self.search
        if processes.world()[1] > 1:
            from nvret.scale import distributed

            top_k = partial(distributed.top_k, search=top_k)
        return top_k(
            self.queries[query_rows],
            self.corpus,
            k,
            ceiling=ceiling,
            exclude=exclude,
            device=self.device,
            progress=progress,
        )


@dataclass(frozen=True)
class BM25Teacher:
    """The sparse teacher; scores are BM25 sums, not cosines, and 0 where no word is shared."""

    name: str = "bm25"
    k1: float = 1.5
    b: float = 0.75

    def prepare(self, dataset: RetrievalDataset, *, progress: bool = True) -> BM25Scorer:
        index = BM25(map(tokenize, dataset.passages), k1=self.k1, b=self.b)
        queries = [tokenize(text) for text in dataset.query_texts]
        return BM25Scorer(self.name, fingerprint("bm25", self.k1, self.b), index, queries)


@dataclass(frozen=True)
class BM25Scorer:
    name: str
    fingerprint: str
    index: BM25
    queries: list[list[str]]

    def pair_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        return self.index.pair_scores([self.queries[row] for row in query_rows], passage_rows)

    def block_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        return self.index.block_scores([self.queries[row] for row in query_rows], passage_rows)

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False):
        queries = [self.queries[row] for row in query_rows]

        def top_k(rows: slice) -> search.SearchResult:
            limits = None if ceiling is None else ceiling[rows]
            excluded = None if exclude is None else exclude[rows]
            return self.index.top_k(
                queries[rows], k, ceiling=limits, exclude=excluded, progress=progress
            )

        if processes.world()[1] == 1:
            return top_k(slice(0, len(queries)))
        from nvret.scale import distributed

        return distributed.by_query(len(queries), top_k)
