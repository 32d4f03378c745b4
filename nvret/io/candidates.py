"""Scored candidates from a file, as a teacher: any rule is applied to them without a model.

Read are a folder of three parts, ``queries``, ``documents`` and ``scores`` (LightOn, PyLate); the
layouts of `nvret.io.mined` where they have scores; and a TREC run, of ids. Where a file is made of
lists, the first of each is the positive. So the scores may be those of an API, a language model, a
reranker or a search engine. What is not in the file has no score: a pair whose positive is missing
cannot be mined for, and a rule that drops more candidates than a list holds finds too few.
"""

from __future__ import annotations

import gzip
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from nvret.data import RetrievalDataset
from nvret.io import mined, tabular
from nvret.search import SearchResult
from nvret.utils.errors import NvretError, check_file
from nvret.utils.store import fingerprint

RUNS = (".run", ".trec", ".txt", ".gz")
log = logging.getLogger("nvret")


@dataclass(frozen=True)
class Lists:
    """Scored candidates as a file has them: L lists, one after another.

    Attributes:
        path: of the file, for messages.
        queries: (L,) ids or texts.
        documents: (S,) ids or texts of all lists.
        scores: (S,) float32.
        starts: (L + 1,) where each list begins in them.
        texts: whether queries and documents are texts, not ids.
    """

    path: Path
    queries: pa.Array
    documents: pa.Array
    scores: np.ndarray
    starts: np.ndarray
    texts: bool

    def __post_init__(self) -> None:
        if not len(self.documents):
            raise NvretError(f"{self.path}: no scored candidate, expected some")
        if not (counts := np.diff(self.starts)).all():
            raise NvretError(f"{self.path}: list {int(counts.argmin()) + 1} is empty")
        if not (finite := np.isfinite(self.scores)).all():
            place = int(finite.argmin())
            raise NvretError(
                f"{self.path}: the score of {self.documents[place].as_py()!r} for query "
                f"{self.query(place)!r} is {self.scores[place]}, expected a number"
            )

    def query(self, place: int) -> str:
        """Of the candidate at this place."""
        return self.queries[int(np.searchsorted(self.starts, place, "right")) - 1].as_py()


def read(path: Path) -> Lists:
    """Scored candidates of a file, or of a folder of three parts.

    Raises:
        NvretError: no such file, or one without scores; a score that is not finite; lists that do
            not fit each other. File and record are named.
    """
    path = Path(path)
    if path.is_dir():
        return read(part(path, "scores"))
    if path.suffix in RUNS:
        return _run(path)
    layout = mined.layout_of(path)
    if path.suffix == ".parquet" and layout.name == "scored-lists":
        return _columns(path)
    listed = list(rows(path, layout))
    scores = [[*row.positive_scores, *row.negative_scores] for row in listed]
    texts = [[*row.positives, *row.negatives] for row in listed]
    return Lists(
        path,
        pa.array([row.query for row in listed], pa.large_string()),
        pa.array(list(itertools.chain(*texts)), pa.large_string()),
        np.fromiter(itertools.chain(*scores), np.float32),
        np.cumsum([0, *map(len, texts)]),
        texts=not layout.ids,
    )


def rows(path: Path, layout: mined.Layout, scored: bool = True) -> Iterator[mined.Row]:
    """The records of a file, a row for each positive.

    Args:
        scored: whether each passage must have a score.
    Raises:
        NvretError: a record that is none, or lacks one; its number is named.
    """
    for number, record in enumerate(mined.read(path), 1):
        row, where = layout.read(record), f"{path}: record {number}"
        if isinstance(row, str):
            raise NvretError(f"{where}: {row}")
        scores = (*row.positive_scores, *row.negative_scores)
        texts = (row.query, *row.positives, *row.negatives)
        if not row.positives or None in texts:
            raise NvretError(f"{where}: expected a positive, and texts")
        counts = len(row.positives), len(row.negatives)
        fits = counts == (len(row.positive_scores), len(row.negative_scores))
        if scored and not (fits and all(map(mined.is_number, scores))):
            raise NvretError(
                f"{where} has {len(scores)} scores for {sum(counts)} passages, expected one for "
                "each"
            )
        own = row.positive_scores if fits else [()] * len(row.positives)
        for text, score in zip(row.positives, own, strict=True):
            yield row._replace(positives=[text], positive_scores=[score])


def _columns(path: Path) -> Lists:
    """Three columns of Parquet, without a Python object for each candidate."""
    with tabular.arrow_errors(path):
        table = pq.read_table(path, columns=["query_id", "document_ids", "scores"])
    lists = {name: table[name] for name in ("document_ids", "scores")}
    for name, column in lists.items():
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise NvretError(f"{path}: {name} is {column.type}, expected a list in each row")
        if (row := pc.index(pc.is_null(column), True).as_py()) >= 0:
            raise NvretError(f"{path}: row {row + 1}: {name} is missing")
    counts = [pc.list_value_length(column).to_numpy() for column in lists.values()]
    if (uneven := counts[0] != counts[1]).any():
        row = int(uneven.argmax())
        raise NvretError(
            f"{path}: row {row + 1} has {counts[0][row]} documents and {counts[1][row]} scores"
        )
    flat = {name: pc.list_flatten(column) for name, column in lists.items()}
    flat = {"query_id": table["query_id"]} | flat
    for name, values in flat.items():
        if values.null_count:
            raise NvretError(f"{path}: {name} holds {values.null_count} that are missing")
    queries, documents, scores = (values.combine_chunks() for values in flat.values())
    if not pa.types.is_floating(scores.type):
        raise NvretError(f"{path}: scores are {scores.type}, expected numbers in each row")
    return Lists(
        path,
        queries.cast(pa.large_string()),
        documents.cast(pa.large_string()),
        scores.to_numpy(zero_copy_only=False).astype(np.float32),
        np.concatenate([[0], np.cumsum(counts[1])]),
        texts=False,
    )


def _run(path: Path) -> Lists:
    """A TREC run; lines that begin with # before the first result are its metadata."""
    check_file(path, "a TREC run")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as stream:
            before = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), stream))
        names = ["query", "q0", "document", "rank", "score", "tag"]
        table = pd.read_csv(
            path, sep=r"\s+", names=names, skiprows=before, usecols=[0, 2, 4], quoting=3,
            dtype={"query": str, "document": str, "score": np.float64}, keep_default_na=False,
            na_values={"score": ["nan", "NaN", ""]}, engine="c",
        )  # fmt: skip
    except (ValueError, OSError, EOFError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(
            f"{path}: no TREC run: {reason}; expected query, Q0, document, rank, score and tag"
        ) from error
    table = table.sort_values("query", kind="stable")
    queries, first = np.unique(table["query"].to_numpy(object), return_index=True)
    return Lists(
        path,
        pa.array(queries, pa.large_string()),
        pa.array(table["document"], pa.large_string()),
        table["score"].to_numpy(np.float32),
        np.append(first, len(table)),
        texts=False,
    )


def part(folder: Path, name: str) -> Path:
    """The file of one of three parts: ``queries.parquet``, or one in ``queries/`` as on the hub."""
    found = [
        path
        for pattern in (f"{name}.*", f"{name}/*", f"{name}-*")
        for path in sorted(folder.glob(pattern))
        if path.suffix in (".parquet", ".jsonl")
    ]
    if len(found) != 1:
        there = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise NvretError(
            f"{folder}: {there} for the part {name!r}, expected one file {name}.parquet or "
            f"{name}.jsonl, or one in the folder {name}"
        )
    return found[0]


def load(path: Path, dataset: RetrievalDataset) -> ListScorer:
    """Scored candidates of a file as a teacher that is prepared for the data set.

    Raises:
        NvretError: as of `read`; a query or passage that is not in the data set; a pair of them
            with two scores.
    """
    lists = read(path)
    query, passage = (
        _places(lists, values, pa.array(texts, pa.large_string()) if lists.texts else ids, where)
        for values, ids, texts, where in (
            (lists.queries, dataset.queries["id"], dataset.query_texts, "queries"),
            (lists.documents, dataset.corpus["id"], dataset.passages, "corpus"),
        )
    )
    query = np.repeat(query, np.diff(lists.starts))
    return replace(ListScorer.of(lists, query, passage, dataset), name=Path(path).name)


def _places(lists: Lists, values: pa.Array, known: Any, where: str) -> np.ndarray:
    """Rows of the data set; `NvretError` for what is not in it."""
    rows = pc.index_in(values, known.cast(pa.large_string()))
    if rows.null_count:
        value = values[pc.index(pc.is_null(rows), True).as_py()].as_py()
        raise NvretError(
            f"{lists.path}: {value[:60]!r} is not in the {where} ({rows.null_count} such), "
            "expected the data that were ranked"
        )
    return rows.to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass(frozen=True)
class ListScorer:
    """The candidates of each query, best first; what is not among them has no score.

    Attributes:
        ids: (S,) rows of the corpus, those of one query together and by (-score, id).
        scores: (S,) float32.
        starts: (Q + 1,) where each query begins.
        passages: N, of the corpus.
    """

    name: str
    fingerprint: str
    ids: np.ndarray
    scores: np.ndarray
    starts: np.ndarray
    passages: int

    @classmethod
    def of(
        cls, lists: Lists, query: np.ndarray, passage: np.ndarray, dataset: RetrievalDataset
    ) -> ListScorer:
        """A scorer of (S,) rows of queries and passages; equal pairs are one."""
        size, scores = dataset.corpus.num_rows, lists.scores
        order = np.lexsort((passage, -scores, query))
        pair = (query * size + passage)[order]
        first = np.ones(len(pair), bool)
        by_pair = np.argsort(pair, kind="stable")
        again = by_pair[1:][pair[by_pair[1:]] == pair[by_pair[:-1]]]
        first[again] = False
        ordered = scores[order]
        before = by_pair[np.searchsorted(pair[by_pair], pair[again])]
        if len(other := np.flatnonzero(ordered[again] != ordered[before])):
            place = order[again[other[0]]]
            raise NvretError(
                f"{lists.path}: {lists.documents[place].as_py()[:60]!r} has two scores for query "
                f"{lists.query(place)[:60]!r}, expected one"
            )
        kept = order[first]
        starts = np.searchsorted(query[kept], np.arange(dataset.queries.num_rows + 1))
        key = fingerprint("lists", query[kept], passage[kept], scores[kept])
        return cls(lists.path.name, key, passage[kept], scores[kept], starts, size)

    @cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys of all pairs, and where each of them stands."""
        query = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        keys = query * self.passages + self.ids
        order = np.argsort(keys)
        return keys[order], order

    def approximation(self, k: int) -> dict[str, Any]:
        """What a table's provenance says of the search."""
        least, most = np.quantile(np.diff(self.starts), [0, 1]).astype(int).tolist()
        return {"candidates": self.name, "shortest": least, "longest": most}

    def places(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """(P,) where each pair stands among the candidates; -1: nowhere."""
        keys, order = self._lookup
        wanted = np.asarray(query_rows) * self.passages + np.asarray(passage_rows)
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[place] == wanted, order[place], -1)

    def pair_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        place = self.places(query_rows, passage_rows)
        if (missing := place < 0).any():
            row = int(missing.argmax())
            raise NvretError(
                f"{self.name}: no score of passage {int(passage_rows[row])} (row) for query "
                f"{int(query_rows[row])}, nor of {int(missing.sum())} pairs altogether"
            )
        return self.scores[place]

    def block_scores(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """-inf where there is no score."""
        shape = len(query_rows), len(passage_rows)
        queries, passages = np.meshgrid(query_rows, passage_rows, indexing="ij")
        place = self.places(queries.ravel(), passages.ravel())
        return np.where(place < 0, -np.inf, self.scores[place]).astype(np.float32).reshape(shape)

    def _those_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of some queries' candidates, which query each is of, and where each begins."""
        begins = np.append(0, np.cumsum(np.diff(self.starts)[rows]))
        owner = np.repeat(np.arange(len(rows)), np.diff(begins))
        return np.arange(len(owner)) + (self.starts[rows] - begins[:-1])[owner], owner, begins

    def select(self, rows: np.ndarray) -> ListScorer:
        """The scorer of a data set that has these queries alone, in this order."""
        place, _, starts = self._those_of(rows)
        ids, scores = self.ids[place], self.scores[place]
        key = fingerprint("lists", starts, ids, scores)
        return replace(self, fingerprint=key, ids=ids, scores=scores, starts=starts)

    def top_k(self, query_rows, k, ceiling=None, exclude=None, *, progress=False) -> SearchResult:
        """As `nvret.search.top_k`, among the candidates of the file."""
        rows = np.asarray(query_rows)
        place, pair, begins = self._those_of(rows)
        kept = np.ones(len(pair), bool)
        if ceiling is not None:
            kept = self.scores[place] < np.asarray(ceiling, np.float32)[pair]
        if exclude is not None:
            lengths = np.fromiter(map(len, exclude), np.int64, len(exclude))
            owner = np.repeat(np.arange(len(rows)), lengths)
            listed = np.fromiter(itertools.chain.from_iterable(exclude), np.int64, lengths.sum())
            found = self.places(rows[owner], listed)
            owner, found = owner[found >= 0], found[found >= 0]
            kept[found - self.starts[rows[owner]] + begins[owner]] = False
        before = np.concatenate([[0], np.cumsum(kept)])
        nth = before[1:] - 1 - before[begins[pair]]
        chosen = kept & (nth < k)
        ids = np.full((len(rows), k), -1, np.int64)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        ids[pair[chosen], nth[chosen]] = self.ids[place[chosen]]
        scores[pair[chosen], nth[chosen]] = self.scores[place[chosen]]
        return SearchResult(torch.from_numpy(ids), torch.from_numpy(scores))


def scored(dataset: RetrievalDataset, scorer: ListScorer) -> RetrievalDataset:
    """The data set less the positives that have no score; a warning says how many these are.

    A pair cannot be mined for without its positive's score. The queries and their order stay.

    Raises:
        NvretError: no positive has a score.
    """
    queries, passages = dataset.pairs
    without = scorer.places(queries, passages) < 0
    if not without.any():
        return dataset
    if without.all():
        raise NvretError(f"{scorer.name}: no labelled positive of {dataset.name} has a score there")
    keys = ["query_id", "corpus_id"]
    log.warning(
        "%s: %d positives have no score there, and are left out", scorer.name, without.sum()
    )
    gone = pa.table([ids.filter(pa.array(without)) for ids in dataset.pair_ids.values()], keys)
    kept = dataset.qrels.join(gone, keys, join_type="left anti").sort_by(
        [(name, "ascending") for name in keys]
    )
    return replace(dataset, qrels=kept.select(dataset.qrels.column_names))
