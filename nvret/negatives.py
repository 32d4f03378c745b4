"""The table of mined negatives: a row for each, with rank, scores, teacher and method.

Its metadata says what made it, and how many negatives it could not find.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nvret.data import RetrievalDataset
from nvret.utils.errors import NvretError, check_file
from nvret.utils.store import atomic_file

SCHEMA = pa.schema([
    ("query_id", pa.string()), ("positive_id", pa.string()), ("negative_id", pa.string()),
    ("rank", pa.int32()), ("score", pa.float32()), ("positive_score", pa.float32()),
    ("teacher", pa.string()), ("method", pa.string()),
])  # fmt: skip


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
    try:
        return json.loads(metadata[b"nvret"])
    except ValueError as error:
        raise NvretError(f"the table's provenance is damaged: {error}") from error


def save(table: pa.Table, path: Path) -> None:
    """Write negatives as Parquet, provenance in its metadata, in one step."""
    with atomic_file(Path(path)) as partial:
        pq.write_table(table, partial, compression="zstd")


def load(path: Path) -> pa.Table:
    """Read negatives written by `save`.

    Raises:
        NvretError: no such file, or no Parquet with the columns of ``SCHEMA`` and provenance.
    """
    check_file(Path(path), "Parquet from nvret mine")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(f"{path}: expected Parquet from nvret mine: {reason}") from error
    if not table.schema.equals(SCHEMA):
        raise NvretError(f"{path} has the columns {table.schema.names}, expected {SCHEMA.names}")
    return table


def is_own(path: Path) -> bool:
    """Whether a file has the columns of ``SCHEMA`` and provenance."""
    check_file(Path(path), "a file of mined negatives")
    try:
        schema = pq.read_schema(path)
        return schema.names == SCHEMA.names and b"nvret" in (schema.metadata or {})
    except (OSError, pa.ArrowException):
        return False


def rows_of(table: pa.Table, dataset: RetrievalDataset) -> pd.DataFrame:
    """The table with rows of the data set instead of ids.

    Args:
        table: columns query_id, positive_id, negative_id, rank; several rows a pair, or none.
        dataset: that the negatives were mined from.
    Returns:
        a row for each negative, in the table's order: pair (its place in ``dataset.pairs``), place
        (among the pair's negatives, by rank), query, positive, negative (rows of the data set),
        rank, and score and positive_score where the table has them.
    Raises:
        NvretError: a column is missing, an unknown id, a pair without a label, or a number that
            is not finite; the row is named.

    >>> from nvret import mining
    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> table = mining.mine(toy, "bm25", mining.NaiveTopK(), 1, progress=False)
    >>> rows_of(table, toy)[["pair", "query", "positive", "negative"]].to_numpy().tolist()
    [[0, 0, 0, 1]]
    """
    for name in ("query_id", "positive_id", "negative_id", "rank"):
        if name not in table.column_names:
            raise NvretError(f"negatives has no column {name!r}, only {table.column_names}")
    sources = {"query": dataset.queries, "positive": dataset.corpus, "negative": dataset.corpus}
    columns = {
        name: _rows(table[f"{name}_id"], source["id"], f"{name}_id", dataset.name)
        for name, source in sources.items()
    }
    for name in ("rank", "score", "positive_score"):
        if name in table.column_names:
            columns[name] = table[name].to_numpy()
            if not (finite := np.isfinite(columns[name])).all():
                row = int(finite.argmin())
                value = columns[name][row]
                raise NvretError(f"negatives row {row}: {name} is {value}, expected a number")
    pair = _pairs(columns["query"], columns["positive"], dataset)
    if (pair < 0).any():
        row = int((pair < 0).argmax())
        query, positive = (table[name][row].as_py() for name in ("query_id", "positive_id"))
        raise NvretError(
            f"negatives row {row}: {positive!r} is no labelled positive of query {query!r} in "
            f"{dataset.name}, expected the judgements that they were mined with"
        )
    frame = pd.DataFrame({"pair": pair, "place": 0, **columns})
    frame["place"] = frame.sort_values("rank", kind="stable").groupby("pair").cumcount()
    return frame


def _rows(column: pa.ChunkedArray, ids: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """Rows of ``ids`` at which the column's values stand. int64."""
    rows = pc.index_in(column.cast(pa.string()), value_set=ids.combine_chunks())
    if missing := rows.null_count:
        row = pc.index(pc.is_null(rows), pa.scalar(True)).as_py()
        raise NvretError(
            f"negatives row {row}: {name} {column[row].as_py()!r} is not in {where} ({missing} "
            "such rows), expected the data that they were mined from"
        )
    return rows.to_numpy().astype(np.int64)


def _pairs(query: np.ndarray, positive: np.ndarray, dataset: RetrievalDataset) -> np.ndarray:
    """Places of (query, positive) among the data set's pairs; -1 for one that it does not have."""
    size = dataset.corpus.num_rows
    known, wanted = dataset.pairs[0] * size + dataset.pairs[1], query * size + positive
    if not len(known):
        return np.full(len(wanted), -1)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)  # the pairs are in order
    return np.where(known[place] == wanted, place, -1)
