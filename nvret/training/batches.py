"""Training examples as batches of tensors, and a memory of earlier ones.

Each (query, positive) pair of a data set is an example, whether or not a mining method found
negatives for it, so that all methods train on the same queries in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from nvret.data import RetrievalDataset
from nvret.encode import Encoder
from nvret.losses import FalseNegativeMask
from nvret.models.batching import Ragged, token_budget_batches
from nvret.negatives import rows_of
from nvret.teachers import Scorer
from nvret.training.config import TrainingConfig
from nvret.utils import processes
from nvret.utils.errors import NvretError

# Tokens of a batch, and of its padding. On a CPU a batch should stay near its caches, yet each
# further one adds up the gradients of all weights once more.
BUDGETS = {"cpu": (2048, 64), "cuda": (32768, 2048)}


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

    @classmethod
    def of(cls, dataset: RetrievalDataset, table: pa.Table) -> Examples:
        """Join the data set's pairs, in its order, with a table of negatives as in `rows_of`.

        Raises:
            NvretError: as `rows_of`; no pair at all, or a pair's own positive as its negative.
        """
        queries, positives = dataset.pairs
        if not len(queries):
            raise NvretError(f"{dataset.name}: no query with a positive, nothing to train on")
        rows = rows_of(table, dataset)
        if (own := (rows["negative"] == rows["positive"]).to_numpy()).any():
            row = int(own.argmax())
            passage = table["negative_id"][row].as_py()
            raise NvretError(f"negatives row {row}: {passage!r} is the pair's own positive")
        depth = int(rows["place"].max()) + 1 if len(rows) else 0
        negatives = np.full((len(queries), depth), -1, np.int64)
        negatives[rows["pair"], rows["place"]] = rows["negative"]
        return cls(queries, positives, negatives)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> int:
        return index  # the collator looks up the whole batch at once


def mask_of(
    dataset: RetrievalDataset, config: TrainingConfig, guide: Scorer | None
) -> FalseNegativeMask | None:
    """What may not be a negative by chance; None where the loss takes no such negatives."""
    if not (config.in_batch_negatives or config.memory_bank):
        return None
    return FalseNegativeMask(dataset.positives, guide, config.mask_margin or 0.0, config.mask_perc)


@dataclass(frozen=True)
class Collator:
    """A batch of pairs as tensors: its distinct texts in groups of near-equal length.

    Attributes:
        queries, passages: token ids of the data set's texts, by ``query_slot``, ``passage_slot``.
        query_slot, passage_slot: data set row -> row of the token ids.
        mask: says which passages may not be negatives by chance; None: the loss takes none.
        budget, slack: tokens of a batch and of its padding (`token_budget_batches`).
    """

    examples: Examples
    encoder: Encoder
    queries: Ragged
    passages: Ragged
    query_slot: np.ndarray
    passage_slot: np.ndarray
    mask: FalseNegativeMask | None = None
    budget: int = 2048
    slack: int = 64

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        dataset: RetrievalDataset,
        pairs: Examples,
        config: TrainingConfig,
        progress: bool,
        guide: Scorer | None = None,
    ) -> Collator:
        """Tokenize the texts that the pairs use, once."""
        tokens, slots = [], []
        listed = np.append(pairs.positives, pairs.negatives)
        for kind, texts, used, length in (
            ("query", dataset.query_texts, pairs.queries, config.query_max_length),
            ("passage", dataset.passages, listed, config.passage_max_length),
        ):
            rows = np.unique(used[used >= 0])
            chosen = [texts[row] for row in rows]
            tokens.append(encoder.tokenize(chosen, kind, max_length=length, progress=progress))
            slot = np.full(len(texts), -1, np.int64)  # -1: the text is not used
            slot[rows] = np.arange(len(rows))
            slots.append(slot)
        mask = mask_of(dataset, config, guide)
        budget, slack = BUDGETS["cpu" if encoder.device.type == "cpu" else "cuda"]
        budget = min(budget, config.chunk_tokens or budget)
        if encoder.layout.static:  # pads nothing and looks up all texts at once
            budget = slack = sys.maxsize
        return cls(pairs, encoder, *tokens, *slots, mask, budget, slack)

    def _groups(self, tokens: Ragged, rows: np.ndarray) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Batches of the rows, and where each row's vector stands in their concatenation."""
        lengths = tokens.lengths[rows]
        parts = list(token_budget_batches(lengths, self.budget, slack=self.slack))
        order = np.concatenate(parts)
        batches = [self.encoder.collate(tokens, rows[part]) for part in parts]
        return batches, torch.from_numpy(np.argsort(order))

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        chosen = np.asarray(indices, np.int64)
        padding = chosen < 0  # as `Shuffle` marks it
        chosen = np.where(padding, ~chosen, chosen)
        rows, query_index = np.unique(self.examples.queries[chosen], return_inverse=True)
        negatives = np.where(padding[:, None], -1, self.examples.negatives[chosen])
        listed = np.column_stack([self.examples.positives[chosen], negatives])
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
        if self.mask is not None:
            inputs["query_rows"] = torch.from_numpy(self.examples.queries[chosen])
            inputs["passage_rows"] = torch.from_numpy(pool)
        if processes.world()[1] > 1:
            inputs["padding"] = torch.from_numpy(padding)
        return inputs


class CrossBatchMemory(nn.Module):
    """A queue of M passages, first in, first out; a state of buffers, so that a checkpoint has it.

    It gives a large batch's worth of negatives at the price of a matrix product. The vectors are
    those of a slightly older model and get no gradient; the method rests on their drifting slowly.
    A passage stands in it once, with its newest vector: hard negatives recur in batch after batch,
    and would otherwise count as often as they recurred.

    Attributes:
        vectors: (M, D), without gradient; oldest first, after those places that are empty.
        rows: (M,) int64, corpus rows; -1 where a place is empty.

    Source: XBM, arXiv 1912.06798, section 3 (the queue, same encoder); the queue comes from MoCo,
    arXiv 1911.05722, whose momentum encoder is not here.

    >>> bank = CrossBatchMemory(3, 2)
    >>> bank.push(torch.tensor([5, 7]), torch.eye(2))
    >>> bank.push(torch.tensor([5]), -torch.ones(1, 2))
    >>> bank.rows.tolist(), bank.vectors[1:].tolist()
    ([-1, 7, 5], [[0.0, 1.0], [-1.0, -1.0]])
    """

    def __init__(self, size: int, dimension: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dimension, dtype=dtype))
        self.register_buffer("rows", torch.full((size,), -1))

    def push(self, rows: Tensor, vectors: Tensor) -> None:
        """Put in a batch's (U,) distinct corpus rows and (U, D) vectors; the oldest leave.

        Of a batch of more than M passages the last M stay.
        """
        left = self.rows.masked_fill(torch.isin(self.rows, rows), -1)
        joined = torch.cat([left, rows])
        last = (joined >= 0).int().argsort(stable=True)[-len(self.rows) :]
        # new tensors, since the backward pass of this step still reads the old ones
        self.rows = joined[last]
        self.vectors = torch.cat([self.vectors, vectors.detach().to(self.vectors.dtype)])[last]
