"""NV-Embed's latent attention: token vectors look up a table of learned vectors before the mean.

Each token vector is a query, and the R rows of the table are keys and values; a feed-forward layer
follows. The layers carry the names of NV-Embed's published weights.

Source: NV-Embed, arXiv 2405.17428, section 3.1; NV-Embed-v1 is a teacher of arXiv 2407.15831.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvret.models.backbones import see_both_ways
from nvret.models.layout import write_json
from nvret.utils.errors import NvretError

BACKBONE, POOLER = "embedding_model.", "latent_attention_model."


@dataclass(frozen=True)
class LatentConfig:
    """Sizes, by the names of NV-Embed's config.json."""

    hidden_dim: int = 4096  # H, of the token vectors
    latent_dim: int = 4096  # of the table's rows
    num_latents_value: int = 512  # R
    num_cross_heads: int = 8
    cross_dim_head: int = 4096  # width of each
    mult: int = 4  # the feed-forward layer is so many times as wide


class _Attention(nn.Module):
    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.heads, inner = config.num_cross_heads, config.num_cross_heads * config.cross_dim_head
        self.to_q = nn.Linear(config.hidden_dim, inner, bias=False)
        self.to_kv = nn.Linear(config.latent_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.hidden_dim, bias=False)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        size = len(hidden)
        key, value = self.to_kv(table).chunk(2, -1)
        parts = (self.to_q(hidden), key, value)
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts]
        query, key, value = heads[0], *(part.expand(size, *part.shape) for part in heads[1:])
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        wide = config.hidden_dim * config.mult
        # published as layers 0 and 2: the gated GELU between them has no weights
        first, last = nn.Linear(config.hidden_dim, 2 * wide), nn.Linear(wide, config.hidden_dim)
        self.net = nn.ModuleDict({"0": first, "2": last})

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.net["0"](hidden).chunk(2, -1)
        return self.net["2"](value * nn.functional.gelu(gate))


class _Normed(nn.Module):
    def __init__(self, layer: nn.Module, width: int, table: int | None = None) -> None:
        super().__init__()
        self.fn, self.norm = layer, nn.LayerNorm(width)
        self.norm_context = None if table is None else nn.LayerNorm(table)

    def forward(self, hidden: Tensor, *tables: Tensor) -> Tensor:
        return self.fn(self.norm(hidden), *(self.norm_context(table) for table in tables))


class LatentAttention(nn.Module):
    """(B, L, H) token vectors to (B, L, H) token vectors.

    >>> config = LatentConfig(4, 4, num_latents_value=3, num_cross_heads=2, cross_dim_head=4)
    >>> LatentAttention(config)(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.randn(config.num_latents_value, config.latent_dim))
        attention = _Normed(_Attention(config), config.hidden_dim, config.latent_dim)
        feed_forward = _Normed(_FeedForward(config), config.hidden_dim)
        self.cross_attend_blocks = nn.ModuleList([attention, feed_forward])

    def forward(self, hidden: Tensor) -> Tensor:
        attention, feed_forward = self.cross_attend_blocks
        hidden = attention(hidden, self.latents) + hidden
        return feed_forward(hidden) + hidden


def load(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, LatentAttention, Any]:
    """Backbone, pooler and tokenizer of an NV-Embed folder.

    The backbone is transformers' Mistral with attention in both directions. The tokenizer closes
    each text with the end token, which NV-Embed's own code adds to the text.
    """
    from safetensors.torch import load_file
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, MistralConfig, MistralModel

    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = {key: value for key, value in sizes["text_config"].items() if key != "model_type"}
    config = MistralConfig(**text)
    latent = sizes["latent_attention_config"]
    known = {key: latent[key] for key in LatentConfig.__dataclass_fields__ if key in latent}
    with torch.device("meta"):  # the weights are read below, not drawn first
        backbone, pooler = MistralModel(config), LatentAttention(LatentConfig(**known))
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    for module, prefix in ((backbone, BACKBONE), (pooler, POOLER)):
        own = {
            key.removeprefix(prefix): value.to(dtype)
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        missing, unexpected = module.load_state_dict(own, strict=False, assign=True)
        if missing or unexpected:
            wrong = ", ".join([*missing, *unexpected][:4])
            raise NvretError(f"{folder}: weights that are missing or have no place: {wrong}")
    backbone.rotary_emb = type(backbone.rotary_emb)(config)  # holds no weights, so none were read
    see_both_ways(backbone)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    return backbone, pooler, tokenizer


def save(folder: Path, backbone: nn.Module, pooler: LatentAttention, tokenizer: Any) -> None:
    """Write what `load` reads."""
    from safetensors.torch import save_file

    weights = {BACKBONE + key: value for key, value in backbone.state_dict().items()}
    weights |= {POOLER + key: value for key, value in pooler.state_dict().items()}
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["NVEmbedModel"],
        "model_type": "nvembed",
        "text_config": backbone.config.to_diff_dict() | {"model_type": "bidir_mistral"},
        "latent_attention_config": asdict(pooler.config) | {"model_type": "latent_attention"},
    }
    write_json(folder / "config.json", config)
    tokenizer.save_pretrained(folder)
