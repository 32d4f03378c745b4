"""What tables of negatives share: the same passages of two teachers, repeats within one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from nvret.analysis.audit import KEYS

PAIR = KEYS[:2]


def jaccard(tables: Sequence[pa.Table], depth: int = 4) -> np.ndarray:
    """(T, T) mean Jaccard similarity of two teachers' first ``depth`` negatives of a pair.

    Pairs for which neither teacher has a negative do not count.
    """
    heads = []
    for table in tables:
        rows = table.select([*KEYS, "rank"]).to_pandas().sort_values("rank", kind="stable")
        heads.append(rows.groupby(PAIR).head(depth)[KEYS].drop_duplicates())
    sizes = [head.groupby(PAIR).size() for head in heads]
    similarity = np.ones((len(heads), len(heads)))
    for a in range(len(heads)):
        for b in range(a):
            both = sizes[a].add(sizes[b], fill_value=0)
            shared = heads[a].merge(heads[b]).groupby(PAIR).size().reindex(both.index, fill_value=0)
            similarity[a, b] = similarity[b, a] = (shared / (both - shared)).mean()
    return similarity


def repeats(table: pa.Table) -> dict[str, float]:
    """How many different passages a pair has among its negatives, and what repeats weigh.

    >>> columns = {"query_id": ["q"] * 3, "positive_id": ["p"] * 3, "negative_id": ["a", "a", "b"]}
    >>> repeats(pa.table(columns))["different"]
    2.0
    """
    counts = table.select(KEYS).to_pandas().value_counts(sort=False)
    pairs = counts.groupby(level=PAIR)
    return {
        "negatives": float(pairs.sum().mean()),
        "different": float(pairs.size().mean()),
        "pairs with a repeat": float((pairs.size() < pairs.sum()).mean()),
        "weight of repeats": float(counts[counts > 1].sum() / counts.sum()),
    }
