"""Several training sets as one, and how many questions of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.data import RetrievalDataset
from nvret.utils.errors import NvretError
from nvret.utils.store import hashed

# Of a merged set: a cluster means nothing in another set
COLUMNS = {
    "corpus": ["id", "title", "text"],
    "queries": ["id", "text"],
    "qrels": ["query_id", "corpus_id", "score"],
}


def shares(sizes: Mapping[str, int], total: int, temperature: float) -> dict[str, int]:
    """How many questions each set gives to a mixture.

    Shares are proportional to ``size ** temperature``: 1 keeps the sets' own proportions, 0 takes
    the same number of each. What a small set cannot give, the others share. Largest remainders
    are rounded up.

    Args:
        sizes: questions that each set has.
        total: questions of the mixture; all, where the sets have fewer.

    >>> shares({"large": 900, "small": 100}, 100, 1.0)
    {'large': 90, 'small': 10}
    >>> shares({"large": 900, "small": 100}, 400, 0.0)
    {'large': 300, 'small': 100}
    """
    if total < 1 or temperature < 0:
        raise NvretError(f"{total} questions at temperature {temperature}: expected >= 1 and >= 0")
    total = min(total, sum(sizes.values()))
    given, free = dict.fromkeys(sizes, 0), dict(sizes)
    while free:
        left = total - sum(given.values())
        weight = np.array([size**temperature for size in free.values()], float)
        wanted = left * weight / weight.sum()
        full = [name for name, part in zip(free, wanted, strict=True) if part >= free[name]]
        if not full:
            floor = np.floor(wanted).astype(int)
            floor[np.argsort(floor - wanted, kind="stable")[: left - floor.sum()]] += 1
            return given | dict(zip(free, floor.tolist(), strict=True))
        given |= {name: free.pop(name) for name in full}
    return given


def sample(dataset: RetrievalDataset, number: int | None, *seeds: int) -> RetrievalDataset:
    """The ``number`` queries whose ids hash lowest: smaller samples are parts of larger ones.

    Another seed draws others, 0 is the default; of several seeds, what any of them draws.
    """
    if number is None or number >= dataset.queries.num_rows:
        return dataset
    ids, drawn = dataset.queries["id"].to_pylist(), set()
    for prefix in {f"{seed}:" if seed else "" for seed in seeds or (0,)}:
        drawn.update(sorted(ids, key=lambda name: hashed(prefix + name))[:number])
    return dataset.select(drawn)


def sample_passages(
    dataset: RetrievalDataset, number: int | None, first: Collection[str] | None = None
) -> RetrievalDataset:
    """All relevant passages, and as many others as make ``number``, those whose ids hash lowest.

    ``first``: ids of the passages that are kept in any case, instead of the relevant ones alone.
    """
    if number is None or number >= dataset.corpus.num_rows:
        return dataset
    ids = dataset.corpus["id"].to_pylist()
    kept = set(first or ()) | {ids[row] for row in np.unique(dataset.pairs[1])}
    others = sorted((name for name in ids if name not in kept), key=hashed)
    kept.update(others[: max(0, number - len(kept))])
    return dataset.select(dataset.queries["id"].to_pylist(), corpus_ids=kept)


def merge(parts: Mapping[str, RetrievalDataset]) -> RetrievalDataset:
    """One set of several; ids become ``set/id``. A single set stays as it is.

    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["a"], ["b"], [[0]])
    >>> merge({"x": toy, "y": toy}).corpus["id"].to_pylist()
    ['x/p0', 'y/p0']
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    tables = {
        kind: pa.concat_tables(
            prefixed(getattr(part, kind).select(columns), name) for name, part in parts.items()
        )
        for kind, columns in COLUMNS.items()
    }
    return RetrievalDataset("+".join(parts), **tables)


def prefixed(table: pa.Table, name: str) -> pa.Table:
    """The table with ``name/`` before its ids: the columns ``id``, ``query_id`` and so on."""
    for place, column in enumerate(table.column_names):
        if column == "id" or column.endswith("_id"):
            longer = pc.binary_join_element_wise(name, table[column], "/")
            table = table.set_column(place, column, longer)
    return table
