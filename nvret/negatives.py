"""The table of mined negatives: a row for each, with rank, scores, teacher and method.

Its metadata says what made it, and how many negatives it could not find.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvret.dataset import RetrievalDataset
from nvret.errors import NvretError
from nvret.store import atomic_file

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
