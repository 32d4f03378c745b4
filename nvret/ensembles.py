"""Ensembles of teachers: each example from one of them, or one negative from each.

Source: NV-Retriever, arXiv 2407.15831, section 4.2 (cross-sample and intra-sample).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.negatives import rows_of
from nvret.sampling import pair_keys, random_bits
from nvret.utils.errors import NvretError


def cross_sample(
    dataset: RetrievalDataset, tables: Sequence[pa.Table], num_negatives: int, seed: int = 0
) -> pa.Table:
    """Each (query, positive) pair takes all of its negatives from one teacher drawn at random.

    Args:
        dataset: the tables were mined from.
        tables: negatives, a table for each teacher, ``num_negatives`` or more a pair.
        num_negatives: kept of each pair.
        seed: of the draw; a pair's draw depends on its ids and the seed alone.
    Returns:
        rows of the tables, by pair and rank.
    """
    rows, _, offsets = _places(dataset, tables)
    keys = pair_keys(*dataset.pair_ids.values(), seed)
    drawn = (random_bits(keys, 1)[:, 0] % np.uint64(len(tables))).astype(int)
    chosen = rows[drawn, np.arange(len(keys)), :num_negatives]
    chosen = np.where(chosen >= 0, chosen + offsets[drawn][:, None], -1)
    return _take(tables, chosen)


def intra_sample(
    dataset: RetrievalDataset, tables: Sequence[pa.Table], num_negatives: int, *, dedup: bool
) -> pa.Table:
    """Each pair takes the first negative of each teacher in turn, then the second, and so on.

    Args:
        dataset: the tables were mined from.
        tables: as in ``cross_sample``. That is deep enough for ``dedup``: fewer than
            ``num_negatives`` passages are taken already, wherever a teacher's next one is sought.
        num_negatives: kept of each pair.
        dedup: replace a passage that an earlier teacher gave by this teacher's next one. Without
            it the passage stands there again, and weighs more in the loss.
    """
    rows, passages, offsets = _places(dataset, tables)
    count, pairs, depth = rows.shape
    chosen = np.full((pairs, num_negatives), -1)
    taken = np.full((pairs, num_negatives), -1)
    following = np.zeros((count, pairs), int)  # each teacher's next rank
    everyone = np.arange(pairs)
    for slot in range(num_negatives):
        teacher = slot % count
        place = following[teacher]
        while dedup:
            inside = np.minimum(place, depth - 1)
            again = (passages[teacher, everyone, inside][:, None] == taken).any(1)
            again &= (place < depth) & (passages[teacher, everyone, inside] >= 0)
            if not again.any():
                break
            place = place + again
        inside = np.minimum(place, depth - 1)
        there = (place < depth) & (rows[teacher, everyone, inside] >= 0)
        chosen[:, slot] = np.where(there, rows[teacher, everyone, inside] + offsets[teacher], -1)
        taken[:, slot] = np.where(there, passages[teacher, everyone, inside], -1)
        following[teacher] = place + 1
    return _take(tables, chosen)


def _places(
    dataset: RetrievalDataset, tables: Sequence[pa.Table]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each teacher's negatives by pair and rank, -1 where there is none.

    Returns:
        (T, P, K) rows of the teachers' tables, (T, P, K) rows of the corpus, and (T,) the first
        row of each table when they stand one after another.
    """
    if len(tables) < 2:
        raise NvretError(f"an ensemble of {len(tables)} teachers, expected two or more")
    joined = [rows_of(table, dataset) for table in tables]
    width = max([1, *(int(part["place"].max()) + 1 for part in joined if len(part))])
    rows = np.full((len(tables), len(dataset.pairs[0]), width), -1)
    passages = rows.copy()
    for teacher, part in enumerate(joined):
        rows[teacher, part["pair"], part["place"]] = np.arange(len(part))
        passages[teacher, part["pair"], part["place"]] = part["negative"]
    return rows, passages, np.cumsum([0, *(table.num_rows for table in tables[:-1])])


def _take(tables: Sequence[pa.Table], chosen: np.ndarray) -> pa.Table:
    """Rows of the tables, pair by pair; ``rank`` becomes the place among the pair's negatives."""
    pair, column = np.nonzero(chosen >= 0)
    everything = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    taken = everything.take(pa.array(chosen[pair, column]))
    place = taken.column_names.index("rank")
    return taken.set_column(place, taken.schema.field("rank"), pa.array(column + 1, pa.int32()))
