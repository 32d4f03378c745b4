"""A retrieval data set: passages, queries, and which passage answers which query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.utils import store
from nvret.utils.errors import NvretError

# An array of strings holds 2 GiB of text at most, a large one any number
STRINGS = (pa.string(), pa.large_string())
_COLUMNS = {
    "corpus": {"id": pa.string(), "title": pa.large_string(), "text": pa.large_string()},
    "queries": {"id": pa.string(), "text": pa.large_string()},
    "qrels": {"query_id": pa.string(), "corpus_id": pa.string(), "score": pa.int32()},
}


@dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """Passages, queries and judgements, checked when it is made.

    Attributes:
        name: for messages and tables; no result is keyed by it.
        corpus: columns id, title ("" if none), text; optionally int32 ``cluster``, the
            near-duplicate cluster of the passage. Titles and texts become large strings.
        queries: columns id, text.
        qrels: columns query_id, corpus_id, score (int32); a score above 0 is relevant.
    Raises:
        NvretError: a column is missing or of another type, an id is repeated, a text is empty, a
            judgement names an id that does not exist or judges a pair twice.

    >>> dataset = RetrievalDataset(
    ...     "tiny",
    ...     corpus=pa.table({"id": ["p1", "p2"], "title": ["", "Emma"], "text": ["a", "b"]}),
    ...     queries=pa.table({"id": ["q1"], "text": ["who?"]}),
    ...     qrels=pa.table({"query_id": ["q1"], "corpus_id": ["p2"], "score": [1]}),
    ... )
    >>> dataset.passages, dataset.positives
    (['a', 'Emma b'], [array([1])])
    """

    name: str
    corpus: pa.Table
    queries: pa.Table
    qrels: pa.Table

    def __post_init__(self) -> None:
        for part, columns in _COLUMNS.items():
            table = _cast(f"{self.name}: {part}", getattr(self, part), columns)
            object.__setattr__(self, part, table)
        for part in ("corpus", "queries"):
            _check_texts(f"{self.name}: {part}", getattr(self, part))
        self._check_qrels()

    def __repr__(self) -> str:
        sizes = (t.num_rows for t in (self.queries, self.corpus, self.qrels))
        return "<{}: {} queries, {} passages, {} judgements>".format(self.name, *sizes)

    def _check_qrels(self) -> None:
        where = f"{self.name}: qrels"
        for column, part in (("query_id", "queries"), ("corpus_id", "corpus")):
            rows = pc.index_in(self.qrels[column], getattr(self, part)["id"])
            missing = _first(pc.is_null(rows))
            if missing is not None:
                value = self.qrels[column][missing].as_py()
                raise NvretError(f"{where} row {missing}: {column} {value!r} is not in the {part}")
        pairs = self.qrels.group_by(["query_id", "corpus_id"]).aggregate([([], "count_all")])
        if pairs.num_rows < self.qrels.num_rows:
            row = _first(pc.greater(pairs["count_all"], 1))
            query, passage = (pairs[key][row].as_py() for key in ("query_id", "corpus_id"))
            raise NvretError(f"{where}: the pair {query!r}, {passage!r} is judged more than once")

    @cached_property
    def passages(self) -> list[str]:
        """Title and text of each passage, with a space between them (BEIR's convention)."""
        parts = self.corpus.select(["title", "text"]).to_batches(256)  # no copy of the whole
        pairs = (zip(*map(pa.Array.to_pylist, part.columns), strict=True) for part in parts)
        return [f"{a} {b}".strip() if a else b for part in pairs for a, b in part]

    @cached_property
    def query_texts(self) -> list[str]:
        return self.queries["text"].to_pylist()

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (in ``queries``, in ``corpus``) of all relevant pairs, ordered by both. int64."""
        relevant = self.qrels.filter(pc.greater(self.qrels["score"], 0))
        rows = [
            pc.index_in(relevant[column], table["id"]).to_numpy().astype(np.int64)
            for column, table in (("query_id", self.queries), ("corpus_id", self.corpus))
        ]
        order = np.lexsort(rows[::-1])
        return rows[0][order], rows[1][order]

    @cached_property
    def pair_ids(self) -> dict[str, pa.ChunkedArray]:
        """``query_id`` and ``positive_id`` of the pairs, in their order."""
        rows = zip(
            ("query_id", "positive_id"), (self.queries, self.corpus), self.pairs, strict=True
        )
        return {name: table["id"].take(pa.array(row)) for name, table, row in rows}

    @cached_property
    def positives(self) -> list[np.ndarray]:
        """For each query the sorted corpus rows (int64) that are relevant."""
        queries, passages = self.pairs
        ends = np.searchsorted(queries, np.arange(1, len(self.queries)))
        return np.split(passages, ends) if len(self.queries) else []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the three tables; the name is not part of it."""
        return store.fingerprint(self.corpus, self.queries, self.qrels)

    def select(
        self,
        query_ids: Iterable[str],
        *,
        corpus_ids: Iterable[str] | None = None,
        name: str | None = None,
    ) -> RetrievalDataset:
        """The part with these queries, and these passages (None: all). Rows keep their order.

        Raises:
            NvretError: an id is unknown, or a kept query would lose a relevant passage.
        """
        queries = _take(self.queries, query_ids, f"{self.name}: queries")
        qrels = self.qrels.filter(pc.is_in(self.qrels["query_id"], queries["id"].combine_chunks()))
        corpus = self.corpus
        if corpus_ids is not None:
            corpus = _take(self.corpus, corpus_ids, f"{self.name}: corpus")
            kept = pc.is_in(qrels["corpus_id"], corpus["id"].combine_chunks())
            lost = _first(pc.and_(pc.invert(kept), pc.greater(qrels["score"], 0)))
            if lost is not None:
                query, passage = (qrels[key][lost].as_py() for key in ("query_id", "corpus_id"))
                raise NvretError(
                    f"{self.name}: query {query!r} would lose its relevant passage {passage!r}, "
                    "which is not among corpus_ids"
                )
            qrels = qrels.filter(kept)
        return RetrievalDataset(name or self.name, corpus, queries, qrels)


def from_texts(
    name: str,
    passages: Sequence[str],
    queries: Sequence[str],
    positives: Sequence[Sequence[int]],
) -> RetrievalDataset:
    """A small set from lists.

    Args:
        passages, queries: texts; their ids become p0, p1, … and q0, q1, …
        positives: for each query the places of its relevant passages.

    >>> from_texts("toy", ["Paris", "Rome"], ["capital of France?"], [[0]]).positives
    [array([0])]
    """
    ids = [f"p{row}" for row in range(len(passages))]
    query_ids = [f"q{row}" for row in range(len(queries))]
    pairs = [(q, ids[row]) for q, rows in zip(query_ids, positives, strict=True) for row in rows]
    return RetrievalDataset(
        name,
        pa.table({"id": ids, "title": [""] * len(ids), "text": list(passages)}),
        pa.table({"id": query_ids, "text": list(queries)}),
        pa.table({
            "query_id": pa.array([query for query, _ in pairs], pa.string()),
            "corpus_id": pa.array([passage for _, passage in pairs], pa.string()),
            "score": pa.array([1] * len(pairs), pa.int32()),
        }),
    )  # fmt: skip


def load(name: str | Path, **options: Any) -> RetrievalDataset:
    """A data set by name, or from a folder.

    Args:
        name: a name of ``datasets.yaml``; or a folder in BEIR's layout (``corpus.jsonl``,
            ``queries.jsonl``, ``qrels/<split>.tsv``); or, with ``source="hub"``, the hub id of
            such a set, as ``owner/name@revision``.
        split: which judgements to read, where there are several; default the only one, or "test".
        source: "package" (default) or "hub".
        drop_empty: leave out passages without any text and their judgements instead of raising an
            error (some of BEIR's sets have them).
        keep_unjudged: of a folder in BEIR's layout, keep the queries that the judgements do not
            name too, so that rows stay in place.
    Raises:
        NvretError: an unknown name, or files that are not as expected (file, line and key named).
    """
    from nvret import assets  # the one place where a name leads out of the core

    return assets.load_dataset(name, **options)


def _cast(where: str, table: pa.Table, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The table with its columns in our types, without nulls; ``cluster`` is kept."""
    wanted = dict(columns)
    if "corpus" in where.split(": ")[-1] and "cluster" in table.column_names:
        wanted["cluster"] = pa.int32()
    arrays = {}
    for column, kind in wanted.items():
        if column not in table.column_names:
            raise NvretError(f"{where}: no column {column!r}; it has {table.column_names}")
        array = table[column]
        if kind in STRINGS and array.type not in STRINGS:
            raise NvretError(f"{where}: column {column!r} is {array.type}; expected text")
        missing = _first(pc.is_null(array, nan_is_null=True))
        if missing is not None:
            raise NvretError(f"{where} row {missing}: {column} is missing")
        try:
            arrays[column] = array.cast(kind)
        except pa.ArrowInvalid as error:
            raise NvretError(f"{where}: column {column!r}: {error}; expected {kind}") from error
    return pa.table(arrays)


def _first(mask: Any) -> int | None:
    """Row of the first true value."""
    row = pc.index(mask, pa.scalar(True)).as_py()
    return None if row < 0 else row


def _check_texts(where: str, table: pa.Table) -> None:
    if not table.num_rows:
        raise NvretError(f"{where}: empty")
    counts = pc.value_counts(table["id"]).flatten()
    twice = _first(pc.greater(counts[1], 1))
    if twice is not None:
        raise NvretError(f"{where}: id {counts[0][twice].as_py()!r} stands there more than once")
    row = _first(without_text(table))
    if row is not None:
        raise NvretError(f"{where} row {row}: {table['id'][row].as_py()!r} has no text")


def without_text(table: pa.Table) -> pa.ChunkedArray:
    """Whether text and title of each row are missing, empty or blank; without a copy of them."""
    empty = True
    for name in {"title", "text"} & set(table.column_names):
        blank = pc.or_(pc.equal(table[name], ""), pc.utf8_is_space(table[name]))
        empty = pc.and_(empty, pc.fill_null(blank, True))
    return empty


def _take(table: pa.Table, ids: Iterable[str], where: str) -> pa.Table:
    wanted = pa.array(list(ids), pa.string())
    unknown = _first(pc.is_null(pc.index_in(wanted, table["id"])))
    if unknown is not None:
        raise NvretError(f"{where}: no id {wanted[unknown].as_py()!r}")
    return table.filter(pc.is_in(table["id"], wanted))
