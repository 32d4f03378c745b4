"""The table of mined negatives: a row for each, with rank, scores, teacher and method.

Its metadata says what made it, and how many negatives it could not find.

[mined] A file of mined negatives beside its data: read, checked, with rows in the place of ids.

[examples] Training examples: each (query, positive) pair of a data set with its mined negatives.

Every pair is an example, whether or not a mining method found negatives for it, so that all methods
train on the same queries in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nvret.data import RetrievalDataset
from nvret.utils.errors import NvretError
from nvret.utils.store import atomic_file

if TYPE_CHECKING:
    from nvret.data import RetrievalDataset


SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_id", pa.string()),
        ("negative_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("teacher", pa.string()),
        ("method", pa.string()),
    ]
)


def assemble(
    dataset: RetrievalDataset,
    columns: dict[str, pa.ChunkedArray | np.ndarray | str],
    ids: np.ndarray,
    ranks: np.ndarray,
    scores: np.ndarray,
) -> pa.Table:
    """A row for each negative, by pair and rank.

    Args:
        columns: what all negatives of a pair share: a value for each pair, or one for all.
        ids, ranks, scores: (P, num_negatives) of the negatives; an id of -1 is none.
    """
    pair, column = np.nonzero(ids >= 0)
    index = pa.array(pair)
    columns = {
        name: pa.repeat(values, len(pair))
        if isinstance(values, str)
        else pa.chunked_array([values]).take(index)
        if isinstance(values, np.ndarray)
        else values.take(index)
        for name, values in columns.items()
    }
    columns["negative_id"] = dataset.corpus["id"].take(pa.array(ids[pair, column]))
    columns["rank"] = pa.array(ranks[pair, column], pa.int32())
    columns["score"] = pa.array(scores[pair, column], pa.float32())
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def provenance(table: pa.Table) -> dict:
    """What made a table of negatives, and how many it could not fill."""
    metadata = table.schema.metadata or {}
    if b"nvret" not in metadata:
        raise NvretError("the table holds no provenance: it was not written by nvret")
    return json.loads(metadata[b"nvret"])


def save(table: pa.Table, path: Path) -> None:
    """Write negatives as Parquet, provenance in its metadata, in one step."""
    with atomic_file(Path(path)) as partial:
        pq.write_table(table, partial, compression="zstd")


def load(path: Path) -> pa.Table:
    """Read negatives written by ``save``."""
    table = pq.read_table(path)
    if not table.schema.equals(SCHEMA):
        raise NvretError(f"{path} has the columns {table.schema.names}, expected {SCHEMA.names}")
    return table


pass


def read(path: Path) -> pa.Table:
    """The negatives of a file that ``nvret mine`` wrote.

    Raises:
        NvretError: no such file, or no Parquet with these columns and provenance.
    """
    try:
        table = load(path)
    except FileNotFoundError as error:
        raise NvretError(f"{path}: no such file, expected Parquet from nvret mine") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(f"{path}: expected Parquet from nvret mine: {reason}") from error
    provenance(table)
    return table


def rows_of(table: pa.Table, dataset: RetrievalDataset) -> pd.DataFrame:
    """The table with rows of the data set instead of ids.

    Returns:
        a row for each negative, in the table's order: pair (its place in ``dataset.pairs``),
        query, positive, negative (rows of the data set), rank, score, positive_score.
    Raises:
        NvretError: an unknown id, a pair without a label, or a score that is no number.

    >>> from nvret import mining
    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> table = mining.mine(toy, "bm25", mining.NaiveTopK(), 1, progress=False)
    >>> rows_of(table, toy)[["pair", "query", "positive", "negative"]].to_numpy().tolist()
    [[0, 0, 0, 1]]
    """
    sources = {"query": dataset.queries, "positive": dataset.corpus, "negative": dataset.corpus}
    found = {}
    for name, source in sources.items():
        places = pc.index_in(table[f"{name}_id"], source["id"])
        if missing := places.null_count:
            at = pc.index(pc.is_null(places), pa.scalar(True)).as_py()
            value = table[f"{name}_id"][at].as_py()
            raise NvretError(
                f"negatives row {at}: {name}_id {value!r} is not in {dataset.name} ({missing} such "
                "rows), expected the data that they were mined from"
            )
        found[name] = places.to_numpy().astype(np.int64)
    rows = pd.DataFrame(found)
    for name in ("rank", "score", "positive_score"):
        rows[name] = table[name].to_numpy()
        if not (good := np.isfinite(rows[name])).all():
            at = int(np.argmin(good))
            raise NvretError(f"negatives row {at}: {name} is {rows[name][at]}, expected a number")
    pairs = pd.MultiIndex.from_arrays(dataset.pairs)
    place = pairs.get_indexer(pd.MultiIndex.from_frame(rows[["query", "positive"]]))
    if (place < 0).any():
        at = int(np.argmax(place < 0))
        query, positive = (table[name][at].as_py() for name in ("query_id", "positive_id"))
        raise NvretError(
            f"negatives row {at}: {positive!r} is no labelled positive of query {query!r} in "
            f"{dataset.name}, expected the judgements that they were mined with"
        )
    rows.insert(0, "pair", place)
    return rows


@dataclass(frozen=True)
class Examples:
    """P pairs and their negatives as row indices of the data set.

    Attributes:
        queries: (P,) int64, query rows.
        positives: (P,) int64, corpus rows.
        negatives: (P, K) int64, corpus rows by rank, -1 where a pair has fewer than K.
    """

    queries: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> int:
        return index  # the collator looks up the whole batch at once


def _rows(column: pa.ChunkedArray, ids: pa.ChunkedArray, name: str) -> np.ndarray:
    """Rows of ``ids`` at which the column's values stand."""
    rows = pc.index_in(column.cast(pa.string()), value_set=ids.cast(pa.string()).combine_chunks())
    rows = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
    if rows.null_count:
        row = pc.is_null(rows).index(True).as_py()
        said = f"{name} {column[row].as_py()!r}"
        raise NvretError(f"negatives row {row}: {said} is not in the data set")
    return rows.to_numpy(zero_copy_only=False).astype(np.int64)


def build(dataset: RetrievalDataset, negatives: pa.Table) -> Examples:
    """Join the data set's pairs with a table of mined negatives.

    Args:
        dataset: gives the pairs, in its order.
        negatives: columns query_id, positive_id, negative_id, rank; several rows a pair, or none.
    Raises:
        NvretError: a column is missing, a row names an unknown id, a pair that the data set does
            not have, or its own positive as a negative.
    """
    pair, place, negative = slots(dataset, negatives)
    queries, positives = (np.asarray(rows, np.int64) for rows in dataset.pairs)
    table = np.full((len(queries), int(place.max(initial=-1)) + 1), -1, np.int64)
    table[pair, place] = negative
    return Examples(queries, positives, table)


def slots(
    dataset: RetrievalDataset, negatives: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row of a table of negatives belongs; arguments and errors as in `build`.

    Returns:
        (R,) int64 each: the row's pair, its place among the pair's negatives by rank, and the
        corpus row of the negative.
    """
    for name in ("query_id", "positive_id", "negative_id", "rank"):
        if name not in negatives.column_names:
            raise NvretError(f"negatives has no column {name!r}, only {negatives.column_names}")
    queries, positives = (np.asarray(rows, np.int64) for rows in dataset.pairs)
    if not len(queries):
        raise NvretError(f"{dataset.name}: no query with a positive, nothing to train on")
    query = _rows(negatives["query_id"], dataset.queries["id"], "query_id")
    positive = _rows(negatives["positive_id"], dataset.corpus["id"], "positive_id")
    negative = _rows(negatives["negative_id"], dataset.corpus["id"], "negative_id")
    if (same := negative == positive).any():
        row = int(same.argmax())
        said = negatives["negative_id"][row].as_py()
        raise NvretError(f"negatives row {row}: {said!r} is the pair's own positive")
    size = dataset.corpus.num_rows
    pairs = queries * size + positives
    order = np.argsort(pairs, kind="stable")
    slot = np.searchsorted(pairs, query * size + positive, sorter=order)
    slot = order[np.minimum(slot, len(order) - 1)]
    if (other := pairs[slot] != query * size + positive).any():
        row = int(other.argmax())
        said = (negatives["query_id"][row].as_py(), negatives["positive_id"][row].as_py())
        raise NvretError(f"negatives row {row}: {said} is not a positive pair of {dataset.name}")
    rank = negatives["rank"].to_numpy()
    by_pair = np.lexsort((rank, slot))
    counts = np.bincount(slot, minlength=len(pairs))
    place = np.empty(len(slot), np.int64)
    place[by_pair] = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    return slot, place, negative
