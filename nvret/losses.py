"""InfoNCE over mined negatives, those of the batch and those of a memory bank.

Cosine similarities divided by a temperature, softmax over the positive and its negatives, minus the
positive's log-probability (arXiv 2407.15831, section 2.1; arXiv 1807.03748).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nvret.errors import NvretError


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
        scores = queries.to(dtype) @ passages.to(dtype).T / temperature
        listed = torch.cat([positives.unsqueeze(1), negatives], 1)
        absent = listed < 0
        logits = scores.gather(1, listed.clamp_min(0)).masked_fill(absent, -torch.inf)
        if in_batch:
            own = torch.zeros(size, pool + 1, dtype=torch.bool, device=scores.device)
            own.scatter_(1, listed.masked_fill(absent, pool), True)  # -1 goes to a spare column
            own = own[:, :pool] if known is None else own[:, :pool] | known
            logits = torch.cat([logits, scores.masked_fill(own, -torch.inf)], 1)
        if bank is not None:
            older = queries.to(dtype) @ bank.to(dtype).T / temperature
            if bank_known is not None:
                older = older.masked_fill(bank_known, -torch.inf)
            logits = torch.cat([logits, older], 1)
        return -logits.log_softmax(1)[:, 0].mean()
