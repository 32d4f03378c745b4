"""Training examples: each (query, positive) pair of a data set with its mined negatives.

Every pair is an example, whether or not a mining method found negatives for it, so that all methods
train on the same queries in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from nvret.batching import Ragged, token_budget_batches
from nvret.errors import NvretError

if TYPE_CHECKING:
    from nvret.dataset import RetrievalDataset
    from nvret.encode import Encoder
    from nvret.relevance import Relevance


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


@dataclass(frozen=True)
class Collator:
    """A batch of pairs as tensors: its distinct texts in groups of near-equal length.

    Attributes:
        examples: the pairs.
        encoder: says how token ids become a batch.
        queries, passages: token ids of the data set's texts, by ``query_slot``, ``passage_slot``.
        query_slot, passage_slot: data set row -> row of the token ids.
        relevance: says which passages may not be negatives by chance; None: there are none such.
        budget, slack: tokens of a batch and of its padding (`token_budget_batches`).
    """

    examples: Examples
    encoder: Encoder
    queries: Ragged
    passages: Ragged
    query_slot: np.ndarray
    passage_slot: np.ndarray
    relevance: Relevance | None = None
    budget: int = 2048
    slack: int = 64

    def _groups(self, tokens: Ragged, rows: np.ndarray) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Batches of the rows, and where each row's vector stands in their concatenation."""
        lengths = tokens.lengths[rows]
        parts = list(token_budget_batches(lengths, self.budget, slack=self.slack))
        order = np.concatenate(parts)
        batches = [self.encoder.collate(tokens, rows[part]) for part in parts]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return batches, torch.from_numpy(back)

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        chosen = np.asarray(indices, np.int64)
        rows, query_index = np.unique(self.examples.queries[chosen], return_inverse=True)
        listed = np.column_stack([self.examples.positives[chosen], self.examples.negatives[chosen]])
        pool, inverse = np.unique(listed, return_inverse=True)
        inverse = inverse.reshape(listed.shape)
        if pool[0] < 0:  # -1, no negative, is not a passage
            pool, inverse = pool[1:], inverse - 1
        query_batches, query_order = self._groups(self.queries, self.query_slot[rows])
        passage_batches, passage_order = self._groups(self.passages, self.passage_slot[pool])
        inputs = {
            "query_batches": query_batches,
            "passage_batches": passage_batches,
            "query_order": query_order[torch.from_numpy(query_index.reshape(-1))],
            "passage_order": passage_order,
            "positives": torch.from_numpy(inverse[:, 0].copy()),
            "negatives": torch.from_numpy(inverse[:, 1:].copy()),
        }
        if self.relevance is not None:
            queries = self.examples.queries[chosen]
            inputs["known"] = torch.from_numpy(self.relevance(queries, listed[:, 0], pool))
            inputs["query_rows"] = torch.from_numpy(queries)
            inputs["passage_rows"] = torch.from_numpy(pool)
        return inputs
