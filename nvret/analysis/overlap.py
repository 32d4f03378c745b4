"""What tables of negatives share: the same passages of two teachers, repeats within one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def jaccard(tables: Sequence[pa.Table], depth: int = 4) -> np.ndarray:
    """(T, T) mean Jaccard similarity of two teachers' first ``depth`` negatives of a pair.

    Pairs for which neither teacher has a negative do not count.
    """
    sets = []
    for table in tables:
        rows = table.select(["query_id", "positive_id", "negative_id", "rank"]).to_pandas()
        rows = rows.sort_values("rank", kind="stable").groupby(["query_id", "positive_id"])
        sets.append({pair: set(ids[:depth]) for pair, ids in rows["negative_id"].agg(list).items()})
    found = np.ones((len(sets), len(sets)))
    for a in range(len(sets)):
        for b in range(a):
            shares = [
                len(left & right) / len(left | right)
                for pair in sets[a].keys() | sets[b].keys()
                for left, right in [(sets[a].get(pair, set()), sets[b].get(pair, set()))]
            ]
            found[a, b] = found[b, a] = np.mean(shares) if shares else np.nan
    return found


def repeats(table: pa.Table) -> dict[str, float]:
    """How many different passages a pair has among its negatives, and what repeats weigh.

    >>> columns = {"query_id": ["q"] * 3, "positive_id": ["p"] * 3, "negative_id": ["a", "a", "b"]}
    >>> repeats(pa.table(columns))["different"]
    2.0
    """
    rows = table.select(["query_id", "positive_id", "negative_id"]).to_pandas()
    counts = rows.value_counts(sort=False)
    pairs = counts.groupby(level=[0, 1])
    return {
        "negatives": float(pairs.sum().mean()),
        "different": float(pairs.size().mean()),
        "pairs with a repeat": float((pairs.size() < pairs.sum()).mean()),
        "weight of repeats": float(counts[counts > 1].sum() / counts.sum()),
    }
