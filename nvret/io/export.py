"""Mined negatives in the formats that other trainers read.

Of sentence-transformers, as its ``mine_hard_negatives`` writes them: ``triplet``, ``n-tuple``,
``labeled-pair`` and ``labeled-list``, in Parquet; of FlagEmbedding, Tevatron and NeMo Automodel,
JSON Lines.
A pair of query and positive whose negatives are too few is treated as each reader needs it:

| format | a pair with fewer negatives than asked for | a pair without any |
|---|---|---|
| ``triplet`` | gives fewer rows | gives none |
| ``n-tuple`` | left out | left out |
| ``labeled-pair`` | gives fewer rows | its positive alone; left out with scores |
| ``labeled-list`` | a shorter list | left out |
| ``flagembedding`` | a shorter list, from which the reader draws again | left out |
| ``tevatron`` | a shorter list, from which the reader draws again | left out |
| ``automodel`` | a shorter list | left out |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nvret import negatives
from nvret.data import RetrievalDataset
from nvret.io import tabular
from nvret.utils.errors import NvretError
from nvret.utils.store import atomic_file

Record = dict[str, Any]


class Pair(NamedTuple):
    """A pair of query and positive with its negatives; the positive stands first."""

    query_row: int
    query: str
    rows: list[int]  # of the corpus
    texts: list[str]
    scores: list[float]  # the teacher's; none where there is no negative


class NegativesByPair:
    """Every pair of a data set with its negatives: none, some, or ``width`` of them."""

    def __init__(self, dataset: RetrievalDataset, table: pa.Table, num_negatives: int) -> None:
        self.dataset = dataset
        rows = negatives.rows_of(table, dataset).sort_values(["pair", "rank"], kind="stable")
        self.starts = np.searchsorted(rows["pair"], np.arange(len(dataset.pairs[0]) + 1))
        self.counts = np.diff(self.starts)
        self.width = max(num_negatives, int(self.counts.max(initial=0)))
        self.rows = {name: rows[name].to_numpy() for name in rows}

    def __iter__(self) -> Iterator[Pair]:
        queries, passages = self.dataset.query_texts, self.dataset.passages
        for number, (query, positive) in enumerate(zip(*self.dataset.pairs, strict=True)):
            part = slice(self.starts[number], self.starts[number + 1])
            scores = [*self.rows["positive_score"][part][:1], *self.rows["score"][part]]
            rows = [int(positive), *self.rows["negative"][part].tolist()]
            texts = [passages[row] for row in rows]
            yield Pair(int(query), queries[query], rows, texts, list(map(float, scores)))

    def filled(self) -> Iterator[Pair]:
        """The pairs that have a negative."""
        return (pair for pair in self if pair.scores)


class Format(NamedTuple):
    """suffix: of its files. records: of all pairs, with the teacher's scores if asked for."""

    suffix: str
    records: Callable[[NegativesByPair, bool], Iterator[Record]]


def triplets(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """anchor, positive, negative; ``scores`` of positive and negative. A record a negative."""
    for pair in mined.filled():
        for text, score in zip(pair.texts[1:], pair.scores[1:], strict=True):
            record = {"anchor": pair.query, "positive": pair.texts[0], "negative": text}
            yield record | ({"scores": [pair.scores[0], score]} if scores else {})


def tuples(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """anchor, positive, negative_1, …; ``scores`` of all but the anchor. A record a full pair."""
    names = ["positive", *(f"negative_{number}" for number in range(1, mined.width + 1))]
    for pair in mined:
        if len(pair.texts) == len(names):
            record = {"anchor": pair.query} | dict(zip(names, pair.texts, strict=True))
            yield record | ({"scores": pair.scores} if scores else {})


def labeled_pairs(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """query, document, label (1 or 0), or the teacher's ``score`` instead of the label.

    A query's positives stand before its negatives; a negative that several of its pairs have in
    common stands there once.
    """
    name, passages = "score" if scores else "label", mined.dataset.passages
    for _, group in itertools.groupby(mined, key=lambda pair: pair.query_row):
        positives: dict[int, float] = {}
        others: dict[int, float] = {}
        for pair in group:
            values = pair.scores if scores else [1] + [0] * len(pair.scores[1:])
            positives.update(zip(pair.rows[:1], values, strict=False))
            for row, value in zip(pair.rows[1:], values[1:], strict=True):
                others.setdefault(row, value)
        for row, value in itertools.chain(positives.items(), others.items()):
            yield {"query": pair.query, "document": passages[row], name: value}


def labeled_lists(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """query, document (the positive, then the negatives), labels or the teacher's ``scores``."""
    for pair in mined.filled():
        labels = {"labels": [1] + [0] * len(pair.texts[1:])}
        record = {"query": pair.query, "document": pair.texts}
        yield record | ({"scores": pair.scores} if scores else labels)


def flagembedding(mined: NegativesByPair, scores: bool = True) -> Iterator[Record]:
    """query, pos, neg, pos_id, neg_id, and for distillation pos_scores and neg_scores.

    Source: ``FlagEmbedding.abc.finetune.embedder.AbsDataset``.
    """
    known = mined.dataset.corpus["id"].to_pylist()
    for pair in mined.filled():
        ids = [known[row] for row in pair.rows]
        record = {"query": pair.query, "pos": pair.texts[:1], "neg": pair.texts[1:],
                  "pos_id": ids[:1], "neg_id": ids[1:]}  # fmt: skip
        given = {"pos_scores": pair.scores[:1], "neg_scores": pair.scores[1:]}
        yield record | (given if scores else {})


def automodel(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """query, pos_doc (a text) and neg_doc (texts): NeMo Automodel's inline JSON Lines."""
    for pair in mined.filled():
        yield {"query": pair.query, "pos_doc": pair.texts[0], "neg_doc": pair.texts[1:]}


def tevatron(mined: NegativesByPair, scores: bool = False) -> Iterator[Record]:
    """query_id, query, positive_passages, negative_passages, each with docid, title and text.

    Query ids repeat where a query has several positives: each pair is a record with its own
    negatives. The reader knows no scores.
    """
    corpus = mined.dataset.corpus.select(["id", "title", "text"])
    known = corpus.rename_columns(["docid", "title", "text"]).to_pylist()
    names = mined.dataset.queries["id"].to_pylist()
    for pair in mined.filled():
        passages = [known[row] for row in pair.rows]
        yield {"query_id": names[pair.query_row], "query": pair.query,
               "positive_passages": passages[:1], "negative_passages": passages[1:]}  # fmt: skip


FORMATS = {
    "triplet": Format(".parquet", triplets),
    "n-tuple": Format(".parquet", tuples),
    "labeled-pair": Format(".parquet", labeled_pairs),
    "labeled-list": Format(".parquet", labeled_lists),
    "flagembedding": Format(".jsonl", flagembedding),
    "tevatron": Format(".jsonl", tevatron),
    "automodel": Format(".jsonl", automodel),
}


def check(name: str, path: Path) -> None:
    """`NvretError` for a format that is none of them, or a file name that says another one."""
    known = ("parquet", *FORMATS)
    if name not in known:
        raise NvretError(f"format is {name!r}, expected one of {', '.join(known)}")
    suffix = ".parquet" if name == "parquet" else FORMATS[name].suffix
    if path.suffix in (".parquet", ".jsonl", ".json", ".csv", ".tsv") and path.suffix != suffix:
        raise NvretError(f"{path}: format {name} is written as {suffix}, not as {path.suffix}")


def write(
    dataset: RetrievalDataset,
    table: pa.Table,
    path: Path,
    name: str = "parquet",
    *,
    scores: bool | None = None,
) -> tuple[int, int]:
    """Write negatives, mined from the data set with their provenance, in one step.

    Args:
        name: "parquet", which `nvret.negatives.load` reads, or one of ``FORMATS``.
        scores: with the teacher's scores; None: where the format has a place for both them and
            labels, or ids.
    Returns:
        how many records were written, and how many pairs of query and positive are in none of them.
    Raises:
        NvretError: an unknown format, no record at all, or a folder that cannot be written.
    """
    path, facts = Path(path), negatives.provenance(table)
    check(name, path)
    try:
        if name == "parquet":
            negatives.save(table, path)
            return table.num_rows, facts["pairs_empty"]
        mined = NegativesByPair(dataset, table, facts["num_negatives"])
        suffix, build = FORMATS[name]
        records = build(mined) if scores is None else build(mined, scores)
        with atomic_file(path) as partial:
            if suffix == ".parquet":
                metadata = table.schema.metadata
                parts = (x.replace_schema_metadata(metadata) for x in tabular.tables(records))
                count = tabular.write_parquet(parts, partial)
            else:
                count = tabular.write_lines(records, partial)
            if not count:
                raise NvretError(f"{path}: no pair has negatives enough, nothing is written")
    except (OSError, UnicodeEncodeError) as error:  # Arrow takes names in UTF-8 alone
        raise NvretError(f"{path}: cannot be written: {error}") from error
    if name == "labeled-pair" and not scores:
        return count, 0
    return count, int((mined.counts < (mined.width if name == "n-tuple" else 1)).sum())
