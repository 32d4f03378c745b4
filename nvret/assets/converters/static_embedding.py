"""A model2vec folder: one vector per token, kept as sentence-transformers' StaticEmbedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvret.assets.converters import layout
from nvret.utils.errors import NvretError


def convert(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(source / "model.safetensors")
    if set(tensors) != {"embeddings"}:
        raise NvretError(f"model.safetensors holds {sorted(tensors)}; expected one 'embeddings'")
    layout.save_weights(target, {"embedding.weight": tensors["embeddings"].astype("float32")})
    layout.save_tokenizer(
        target,
        layout.read_tokenizer(source),
        max_length=recipe["max_seq_length"],
        **layout.BERT_TOKENS,
    )
