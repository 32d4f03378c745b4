"""Token vectors to one vector a text."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, mask: Tensor | None, mode: str, skip: int = 0) -> Tensor:
    """(B, L, H) token vectors to (B, H).

    Args:
        hidden: padded on the right.
        mask: (B, L), 1 for a token and 0 for padding; None: no padding.
        mode: "cls" takes the first token, "last" the last one, any other the mean.
        skip: leading tokens that the mean leaves out.

    >>> pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]), "mean")
    tensor([[2.]])
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last":
        if mask is None:
            return hidden[:, -1]
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if hidden.dtype in (torch.float16, torch.bfloat16):
        hidden = hidden.float()
    hidden = hidden[:, skip:]
    if mask is None:
        return hidden.mean(1)
    weights = mask[:, skip:].to(hidden.dtype)
    # a batched matrix product: no (B, L, H) intermediate, unlike multiply and sum
    summed = torch.bmm(weights.unsqueeze(1), hidden).squeeze(1)
    return summed / weights.sum(1, keepdim=True)
