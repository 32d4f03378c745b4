"""A transformer's batch without padding: its texts one after another, attention within each.

No layer then computes what padding would hold, and attention needs no mask, without which a GPU has
FlashAttention: the kernel for texts of several lengths that torch brings (for half precision). What
that kernel cannot do (float32, a CPU, dropout of attention) is done by torch's padded attention.

Source: Dao 2023 (FlashAttention-2), arXiv 2307.08691.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

NAME = "nvret_unpadded"  # as transformers knows it
# Kinds of models (config.json's model_type) that take positions as an argument, and leave the whole
# of attention to transformers' interface
KINDS = (
    "bert", "distilbert", "gemma3_text", "llama", "mistral", "modernbert", "qwen2", "qwen3",
    "roberta", "xlm-roberta",
)  # fmt: skip
HALF = (torch.float16, torch.bfloat16)


def is_fast(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has the kernel for a device and a type: a GPU since Ampere, half precision."""
    device = torch.device(device)
    if device.type != "cuda" or dtype not in HALF:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and _kernel() is not None


def use(backbone: nn.Module) -> bool:
    """Let a backbone read batches without padding from now on, in place; False where its kind is
    not known to."""
    from transformers import AttentionInterface

    if getattr(backbone.config, "model_type", None) not in KINDS:
        return False
    AttentionInterface.register(NAME, attention)
    backbone.config._attn_implementation = NAME
    return True


def used(backbone: nn.Module) -> bool:
    """Whether it does."""
    return getattr(backbone.config, "_attn_implementation", None) == NAME


def run(backbone: nn.Module, words: dict[str, Any], mask: Tensor | None) -> Tensor:
    """(B, L, H) token vectors of a padded batch, zero where it is padded.

    Args:
        words: "input_ids", (B, L), or "inputs_embeds", (B, L, H), and further arguments.
        mask: (B, L), 1 for a token and 0 for padding, which is on the right; None: no padding.
    """
    name = "inputs_embeds" if "inputs_embeds" in words else "input_ids"
    padded = words[name]
    if mask is None:
        mask = torch.ones(padded.shape[:2], dtype=torch.int64, device=padded.device)
    (count, width), places = mask.shape, mask.flatten().nonzero()[:, 0]
    ends = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    texts = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}  # transformers' names
    texts |= {"max_length_q": width, "max_length_k": width}
    flat = padded.flatten(0, 1).index_select(0, places)[None]
    positions = (places % width)[None]
    if "roberta" in backbone.config.model_type:  # its first position comes after the padding's
        positions = positions + backbone.config.pad_token_id + 1
    hidden = backbone(**words | {name: flat}, position_ids=positions, **texts).last_hidden_state[0]
    empty = hidden.new_zeros(count * width, hidden.shape[1])
    return empty.index_copy(0, places, hidden).unflatten(0, (count, width))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers' ``AttentionInterface`` calls it: (1, heads, T, D) to (1, T, heads, D).

    ``cu_seq_lens_q`` (B + 1,) int32 says where each text starts, and ``max_length_q`` how long the
    longest may be. ``key`` and ``value`` may have fewer heads.
    """
    causal = module.is_causal if is_causal is None else is_causal
    # Tokens to each side, -1: all. A decoder that is told to see both ways sees one more
    both = getattr(module.config, "is_causal", None) is False
    reach = -1 if sliding_window is None else sliding_window - (not both)
    window = reach, 0 if causal else reach
    if value.dtype in HALF:  # autocast leaves rotated queries and keys in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    parts = [part[0].transpose(0, 1) for part in (query, key, value)]
    if is_fast(value.device, value.dtype) and not dropout:
        ends, width = (cu_seq_lens_q,) * 2, (max_length_q,) * 2
        options = {"scale": scaling, "window_size": window}
        options |= {"enable_gqa": query.shape[1] != key.shape[1]}
        found = _kernel()(*parts, *ends, *width, **options)
    else:
        found = _padded(*parts, cu_seq_lens_q.long(), max_length_q, window, scaling, dropout)
    return found[None], None


def _kernel() -> Any:
    """torch's, None where torch is too old for it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if needed <= set(inspect.signature(varlen_attn).parameters) else None


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    width: int,
    window: tuple[int, int],
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """(T, heads, D), by attention in a padded batch."""
    lengths, place = ends.diff(), torch.arange(width, device=ends.device)
    filled = place < lengths[:, None]
    batch = [part.new_zeros(*filled.shape, *part.shape[1:]) for part in (query, key, value)]
    batch = [empty.masked_scatter(filled[:, :, None, None], part).transpose(1, 2)
             for empty, part in zip(batch, (query, key, value), strict=True)]  # fmt: skip
    ahead = place - place[:, None]
    near = torch.ones_like(ahead, dtype=torch.bool)
    for side, reach in zip((-ahead, ahead), window, strict=True):
        near &= (side <= reach) if reach >= 0 else near
    # A padded row sees itself, since it would be NaN without any
    seen = near & filled[:, None, :] | torch.eye(width, dtype=torch.bool, device=ends.device)
    grouped = query.shape[1] != key.shape[1]
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": grouped}
    found = nn.functional.scaled_dot_product_attention(*batch, seen[:, None], **options)
    return found.transpose(1, 2)[filled]
