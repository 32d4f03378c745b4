"""A file of mined negatives beside its data: read, checked, with rows in the place of ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import negatives
from nvret.dataset import RetrievalDataset
from nvret.errors import NvretError


def read(path: Path) -> pa.Table:
    """The negatives of a file that ``nvret mine`` wrote.

    Raises:
        NvretError: no such file, or no Parquet with these columns and provenance.
    """
    try:
        table = negatives.load(path)
    except FileNotFoundError as error:
        raise NvretError(f"{path}: no such file, expected Parquet from nvret mine") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(f"{path}: expected Parquet from nvret mine: {reason}") from error
    negatives.provenance(table)
    return table


def rows_of(table: pa.Table, dataset: RetrievalDataset) -> pd.DataFrame:
    """The table with rows of the data set instead of ids.

    Returns:
        a row for each negative, in the table's order: pair (its place in ``dataset.pairs``),
        query, positive, negative (rows of the data set), rank, score, positive_score.
    Raises:
        NvretError: an unknown id, a pair without a label, or a score that is no number.

    >>> from nvret import mining
    >>> from nvret.dataset import from_texts
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
