"""InfoNCE over mined negatives, those of the batch and those of a memory of earlier batches.

Cosine similarities divided by a temperature, softmax over the positive and its negatives, minus the
positive's log-probability (arXiv 2407.15831, section 2.1; arXiv 1807.03748).

Mined negatives are filtered where they are mined. Negatives that come by chance, those of the batch
and of the memory, are filtered by a `FalseNegativeMask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nvret.utils.errors import NvretError
from nvret.utils.products import linear

if TYPE_CHECKING:
    from nvret.teachers import Scorer


def info_nce(
    queries: Tensor,
    passages: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    in_batch: bool = False,
    known: Tensor | None = None,
    bank: Tensor | None = None,
    bank_known: Tensor | None = None,
    hardness: float = 0.0,
) -> Tensor:
    """Mean InfoNCE loss of B (query, positive) pairs that share a pool of U distinct passages.

    A passage listed several times among a pair's negatives counts as often as it is listed: that
    is how intra-sample ensembling without deduplication weighs a passage that several teachers
    chose. As an in-batch negative each passage of the pool counts once, and neither the pair's own
    positive nor its own mined negatives are in-batch negatives.

    A pair that has no negative at all has loss 0 and gradient 0, and still counts in the mean, so
    that every mining method divides by the same number of pairs.

    Args:
        queries: (B, D), L2-normalised.
        passages: (U, D), L2-normalised; the distinct passages of the batch.
        positives: (B,) int, rows of ``passages``.
        negatives: (B, K) int, rows of ``passages``; -1 where a pair has fewer than K. K may be 0.
        temperature: what cosines are divided by, > 0.
        in_batch: also take the batch's other passages as negatives.
        known: (B, U) bool, passages that are relevant to the query and therefore may not be
            in-batch negatives of it. Mined negatives are taken as they are.
        bank: (M, D), L2-normalised, without gradient: vectors of further negatives. M may be 0.
        bank_known: (B, M) bool, places of ``bank`` that are no negatives of the query: empty,
            relevant, or among the pair's other negatives and therefore counted already.
        hardness: mined negatives weigh exp(hardness * cosine) times as much, a weight without
            gradient (arXiv 2509.20354 takes 5); 0: all weigh the same.
    Returns:
        scalar, float32 or wider, whatever precision autocast asks for.
    Raises:
        NvretError: shapes that do not fit together, a temperature that is not positive.

    >>> q = torch.tensor([[1.0, 0.0]])
    >>> p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> info_nce(q, p, torch.tensor([0]), torch.tensor([[1, -1]]), temperature=1.0)
    tensor(0.3133)
    """
    size, pool = len(queries), len(passages)
    if temperature <= 0:
        raise NvretError(f"temperature {temperature}, expected > 0")
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(passages.shape)}"
        raise NvretError(f"queries and passages have shapes {shapes}, expected (B, D) and (U, D)")
    if positives.shape != (size,) or negatives.ndim != 2 or len(negatives) != size:
        shapes = f"{tuple(positives.shape)} and {tuple(negatives.shape)}"
        raise NvretError(
            f"positives and negatives are {shapes}, expected ({size},) and ({size}, K)"
        )
    if known is not None and known.shape != (size, pool):
        raise NvretError(f"known has shape {tuple(known.shape)}, expected {(size, pool)}")
    if bank is not None and (bank.ndim != 2 or bank.shape[1] != queries.shape[1]):
        raise NvretError(f"bank has shape {tuple(bank.shape)}, expected (M, {queries.shape[1]})")
    places = (size, 0 if bank is None else len(bank))
    if bank_known is not None and bank_known.shape != places:
        raise NvretError(f"bank_known has shape {tuple(bank_known.shape)}, expected {places}")

    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        queries, passages = queries.to(dtype), passages.to(dtype)
        listed = torch.cat([positives.unsqueeze(1), negatives], 1)
        absent = listed < 0
        if in_batch:
            scores = linear(queries, passages) / temperature
            logits = scores.gather(1, listed.clamp_min(0))
        else:  # a pair's own alone; the gradient of a lookup is deterministic on a GPU as well
            chosen = nn.functional.embedding(listed.clamp_min(0), passages)
            logits = (chosen * queries.unsqueeze(1)).sum(2) / temperature
        logits = logits.masked_fill(absent, -torch.inf)
        if hardness:
            harder = hardness * temperature * logits[:, 1:].detach()
            logits = torch.cat([logits[:, :1], logits[:, 1:] + harder], 1)
        if in_batch:
            own = torch.zeros(size, pool + 1, dtype=torch.bool, device=scores.device)
            own.scatter_(1, listed.masked_fill(absent, pool), True)  # -1 goes to a spare column
            own = own[:, :pool] if known is None else own[:, :pool] | known
            logits = torch.cat([logits, scores.masked_fill(own, -torch.inf)], 1)
        if bank is not None:
            older = linear(queries, bank.to(dtype)) / temperature
            if bank_known is not None:
                older = older.masked_fill(bank_known, -torch.inf)
            logits = torch.cat([logits, older], 1)
        return -logits.log_softmax(1)[:, 0].mean()


@dataclass(frozen=True)
class FalseNegativeMask:
    """Relevant or suspected passages of (query, positive) pairs, by rows of one data set.

    Such a passage may not be a negative by chance: it is labelled, or a teacher (the guide) places
    it above the pair's own positive, so that it is probably relevant and unlabelled.

    Attributes:
        positives: for each query the corpus rows that are labelled relevant.
        guide: a teacher that has read the data set; None: the labels alone.
        margin: how far above the pair's positive a passage must score to be suspected, in the
            guide's own units (cosines, BM25 sums); below 0 it is suspected earlier.
        perc: instead of the margin, the share of the positive's score above which it is suspected.

    Source: GISTEmbed, arXiv 2402.16829 (margin 0); Qwen3-Embedding, arXiv 2506.05176, masks what is
    above the positive's score + 0.1. Both also mask queries against queries; here are passages
    alone.

    >>> mask = FalseNegativeMask([np.array([4]), np.array([0, 2])])
    >>> mask(np.array([0, 1]), np.array([4, 2]), np.array([0, 1, 2, 4])).astype(int)
    array([[0, 0, 0, 1],
           [1, 0, 1, 0]])
    """

    positives: Sequence[np.ndarray]
    guide: Scorer | None = None
    margin: float = 0.0
    perc: float | None = None

    def __call__(
        self, queries: np.ndarray, positives: np.ndarray, passages: np.ndarray
    ) -> np.ndarray:
        """(B, U) bool, whether passage u may not be a negative of pair b.

        The guide scores the B queries with the U passages and the pairs' own ones in one product.

        Args:
            queries: (B,) int, query rows.
            positives: (B,) int, the pairs' corpus rows.
            passages: (U,) int, corpus rows.
        """
        own = [self.positives[query] for query in queries]
        flat, pair = np.concatenate(own), np.repeat(np.arange(len(own)), list(map(len, own)))
        rows, columns = np.unique(passages, return_inverse=True)
        here = np.isin(flat, rows)
        known = np.zeros((len(own), len(rows)), bool)
        known[pair[here], rows.searchsorted(flat[here])] = True
        known = known[:, columns.reshape(-1)]
        if self.guide is None:
            return known
        rows, columns = np.unique(np.concatenate([positives, passages]), return_inverse=True)
        scores = self.guide.block_scores(queries, rows)
        own, others = np.split(columns.reshape(-1), [len(positives)])
        limits = scores[np.arange(len(queries)), own]
        away = self.margin if self.perc is None else np.abs(limits) * (self.perc - 1)
        limits = limits + away
        return known | (scores[:, others] > limits[:, None])
