"""Mined negatives in the formats that other trainers read.

Of sentence-transformers, as its ``mine_hard_negatives`` writes them: ``triplet``, ``n-tuple``,
``labeled-pair`` and ``labeled-list``, in Parquet; of FlagEmbedding and of Tevatron, JSON Lines.
A pair of query and positive whose negatives are too few is treated as each reader needs it:

| format | a pair with fewer negatives than asked for | a pair without any |
|---|---|---|
| ``triplet`` | gives fewer rows | gives none |
| ``n-tuple`` | left out | left out |
| ``labeled-pair`` | gives fewer rows | its positive alone; left out with scores |
| ``labeled-list`` | a shorter list | left out |
| ``flagembedding`` | a shorter list, from which the reader draws again | left out |
| ``tevatron`` | a shorter list, from which the reader draws again | left out |
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvret import negatives
from nvret.data import RetrievalDataset
from nvret.utils.errors import NvretError
from nvret.utils.store import atomic_file

Record = dict[str, Any]


@dataclass(frozen=True)
class Mined:
    """P pairs of query and positive with their negatives, as rows of a data set.

    Attributes:
        dataset: whose rows they are.
        queries, positives: (P,) rows of queries and corpus.
        negatives: (P, K) rows of the corpus by rank, -1 where there are fewer than K.
        scores: (P, K) the teacher's, NaN there; positive_scores: (P,), NaN without a negative.
    """

    dataset: RetrievalDataset
    queries: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray

    @classmethod
    def of(cls, dataset: RetrievalDataset, table: pa.Table, num_negatives: int) -> Mined:
        """A table of negatives, joined with the set that it was mined from.

        Args:
            num_negatives: K, that were asked for.
        """
        pair, place, negative = negatives.slots(dataset, table)
        queries, positives = dataset.pairs
        width = max(num_negatives, int(place.max(initial=-1)) + 1)
        rows = np.full((len(queries), width), -1, np.int64)
        scores = np.full(rows.shape, np.nan, np.float32)
        positive_scores = np.full(len(queries), np.nan, np.float32)
        rows[pair, place] = negative
        scores[pair, place] = table["score"].to_numpy()
        positive_scores[pair] = table["positive_score"].to_numpy()
        return cls(dataset, queries, positives, rows, scores, positive_scores)

    def __iter__(self) -> Iterator[tuple[int, int, int, list[int], list[float]]]:
        """pair, its query, its positive, its negatives and their scores."""
        for pair, rows in enumerate(self.negatives):
            there = rows >= 0
            scores = self.scores[pair][there].tolist()
            yield pair, self.queries[pair], self.positives[pair], rows[there].tolist(), scores


class Format(NamedTuple):
    """suffix: of its files. records: from `Mined`, with the teacher's scores if asked for."""

    suffix: str
    records: Callable[[Mined, bool], Iterator[Record]]


def triplets(mined: Mined, scores: bool = False) -> Iterator[Record]:
    """anchor, positive, negative; ``scores`` of positive and negative. A record a negative."""
    for pair, query, positive, rows, values in mined:
        for row, score in zip(rows, values, strict=True):
            record = _anchor(mined, query, positive) | {"negative": mined.dataset.passages[row]}
            yield record | _if(scores, [float(mined.positive_scores[pair]), score])


def tuples(mined: Mined, scores: bool = False) -> Iterator[Record]:
    """anchor, positive, negative_1, …; ``scores`` of all but the anchor. A record a full pair."""
    for pair, query, positive, rows, values in mined:
        if len(rows) < mined.negatives.shape[1]:
            continue
        record = _anchor(mined, query, positive)
        for place, row in enumerate(rows, start=1):
            record[f"negative_{place}"] = mined.dataset.passages[row]
        yield record | _if(scores, [float(mined.positive_scores[pair]), *values])


def labeled_pairs(mined: Mined, scores: bool = False) -> Iterator[Record]:
    """query, document, label (1 or 0), or the teacher's ``score`` instead of the label.

    A query's positives stand before its negatives; a negative that several of its pairs have in
    common stands there once.
    """
    texts, name = mined.dataset.passages, "score" if scores else "label"
    found: dict[int, tuple[dict[int, float], dict[int, float]]] = {}
    for pair, query, positive, rows, values in mined:
        positives, others = found.setdefault(int(query), ({}, {}))
        if rows or not scores:
            positives[int(positive)] = float(mined.positive_scores[pair]) if scores else 1
        for row, score in zip(rows, values, strict=True):
            others.setdefault(row, score if scores else 0)
    for query, parts in found.items():
        for part in parts:
            for row, value in part.items():
                asked = mined.dataset.query_texts[query]
                yield {"query": asked, "document": texts[row], name: value}


def labeled_lists(mined: Mined, scores: bool = False) -> Iterator[Record]:
    """query, document (the positive, then the negatives), labels or the teacher's ``scores``."""
    texts = mined.dataset.passages
    for pair, query, positive, rows, values in mined:
        if rows:
            record = {
                "query": mined.dataset.query_texts[query],
                "document": [texts[row] for row in (positive, *rows)],
            }
            labels = {"labels": [1] + [0] * len(rows)}
            given = _if(scores, [float(mined.positive_scores[pair]), *values])
            yield record | (given or labels)


def flagembedding(mined: Mined, scores: bool = True) -> Iterator[Record]:
    """query, pos, neg, pos_id, neg_id, and for distillation pos_scores and neg_scores.

    Source: ``FlagEmbedding.abc.finetune.embedder.AbsDataset``.
    """
    texts, ids = mined.dataset.passages, mined.dataset.corpus["id"].to_pylist()
    for pair, query, positive, rows, values in mined:
        if rows:
            record = {
                "query": mined.dataset.query_texts[query],
                "pos": [texts[positive]],
                "neg": [texts[row] for row in rows],
                "pos_id": [ids[positive]],
                "neg_id": [ids[row] for row in rows],
            }
            if scores:
                record["pos_scores"] = [float(mined.positive_scores[pair])]
                record["neg_scores"] = values
            yield record


def tevatron(mined: Mined, scores: bool = False) -> Iterator[Record]:
    """query_id, query, positive_passages, negative_passages, each with docid, title and text.

    Query ids repeat where a query has several positives: each pair is a record with its own
    negatives. The reader knows no scores.
    """
    corpus = mined.dataset.corpus.select(["id", "title", "text"]).to_pydict()
    passages = [
        {"docid": ident, "title": title, "text": text}
        for ident, title, text in zip(*corpus.values(), strict=True)
    ]
    names = mined.dataset.queries["id"].to_pylist()
    for _, query, positive, rows, _ in mined:
        if rows:
            yield {
                "query_id": names[query],
                "query": mined.dataset.query_texts[query],
                "positive_passages": [passages[positive]],
                "negative_passages": [passages[row] for row in rows],
            }


FORMATS = {
    "triplet": Format(".parquet", triplets),
    "n-tuple": Format(".parquet", tuples),
    "labeled-pair": Format(".parquet", labeled_pairs),
    "labeled-list": Format(".parquet", labeled_lists),
    "flagembedding": Format(".jsonl", flagembedding),
    "tevatron": Format(".jsonl", tevatron),
}


def check(name: str, path: Path) -> None:
    """`NvretError` for a format that is none of them, or a file name that says another one."""
    if name not in ("parquet", *FORMATS):
        known = ", ".join(("parquet", *FORMATS))
        raise NvretError(f"format is {name!r}, expected one of {known}")
    suffix = FORMATS[name].suffix if name in FORMATS else ".parquet"
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
    """Write negatives in a format, in one step.

    Args:
        dataset: the table was mined from.
        table: of `nvret.mining.mine`, with its provenance.
        name: "parquet", which `nvret.negatives.load` reads, or one of ``FORMATS``.
        scores: with the teacher's scores; None: where the format has a place for both them and
            labels, or ids.
    Returns:
        how many records were written, and how many pairs of query and positive are in none of them.
    Raises:
        NvretError: an unknown format, no record at all, or a folder that cannot be written.
    """
    path = Path(path)
    check(name, path)
    try:
        if name == "parquet":
            negatives.save(table, path)
            return table.num_rows, negatives.provenance(table)["pairs_empty"]
        mined = Mined.of(dataset, table, negatives.provenance(table)["num_negatives"])
        format_, given = FORMATS[name], {} if scores is None else {"scores": scores}
        records = format_.records(mined, **given)
        count = (_parquet if format_.suffix == ".parquet" else _lines)(records, path, table)
    except OSError as error:
        raise NvretError(f"{path}: cannot be written: {error}") from error
    return count, left_out(mined, name, bool(scores))


def left_out(mined: Mined, name: str, scores: bool = False) -> int:
    """How many pairs of query and positive are in no record of a format."""
    if name == "labeled-pair" and not scores:
        return 0
    needed = mined.negatives.shape[1] if name == "n-tuple" else 1
    return int(((mined.negatives >= 0).sum(1) < needed).sum())


def _parquet(records: Iterator[Record], path: Path, table: pa.Table, number: int = 4096) -> int:
    """Some records at a time: the texts of all negatives may be more than the memory holds."""
    count, writer = 0, None
    with atomic_file(path) as partial:
        try:
            while some := list(itertools.islice(records, number)):
                part = pa.Table.from_pylist(some).replace_schema_metadata(table.schema.metadata)
                writer = writer or pq.ParquetWriter(partial, part.schema, compression="zstd")
                writer.write_table(part)
                count += len(some)
        finally:
            if writer is not None:
                writer.close()
        if not count:
            raise NvretError(f"{path}: no pair has negatives enough, nothing is written")
    return count


def _lines(records: Iterator[Record], path: Path, table: pa.Table) -> int:
    count = 0
    with atomic_file(path) as partial:
        with partial.open("w", encoding="utf-8") as stream:
            for count, record in enumerate(records, start=1):  # noqa: B007
                stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        if not count:
            raise NvretError(f"{path}: no pair has negatives enough, nothing is written")
    return count


def _anchor(mined: Mined, query: int, positive: int) -> Record:
    texts = mined.dataset
    return {"anchor": texts.query_texts[query], "positive": texts.passages[positive]}


def _if(scores: bool, values: list[float]) -> Record:
    return {"scores": values} if scores else {}
