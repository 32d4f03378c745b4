"""A Llama-like decoder in GGUF -> ``LlamaModel`` weights and its byte-level BPE tokenizer.

llama.cpp stores the rows of each head's query and key matrices in another order (rotary pairs side
by side, where transformers has the two halves one after the other); here they are put back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvret.assets.converters import layout
from nvret.utils.errors import NvretError

_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OTHERS = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_CONTROL = 3  # token type of special tokens


def halves_first(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs side by side (0, 1, 0, 1) to halves (0, 0, 1, 1).

    >>> halves_first(np.array([[0], [10], [1], [11]]), heads=1).ravel()
    array([ 0,  1, 10, 11])
    """
    rows, width = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def llama_weights(reader: Any, heads: int, key_heads: int) -> dict[str, np.ndarray]:
    """Float32 weights under the names that ``LlamaModel`` has for them."""
    from gguf import dequantize

    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name in _OTHERS:
            weights[_OTHERS[tensor.name]] = values
            continue
        _, layer, module, _ = tensor.name.split(".")
        if module in ("attn_q", "attn_k"):
            values = halves_first(values, heads if module == "attn_q" else key_heads)
        weights[f"layers.{layer}.{_MODULES[module]}.weight"] = values
    return weights


def build_tokenizer(tokens: list[str], merges: list[str], types: list[int], end: str) -> Any:
    """SmolLM's tokenizer: digits one by one, GPT-2's words, byte-level BPE.

    An end token is appended to every text: a decoder reads left to right, so the vector of the
    last token is the first that has seen all of the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return tokenizer


def convert(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(str(source / "model.gguf"))

    def field(name: str) -> Any:
        if name not in reader.fields:
            raise NvretError(f"model.gguf: no field {name!r}")
        return reader.fields[name].contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.pre") != "smollm":
        raise NvretError("model.gguf: expected the architecture 'llama' with SmolLM's tokenizer")
    heads, key_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tokens = field("tokenizer.ggml.tokens")
    end, pad = tokens[field("tokenizer.ggml.eos_token_id")], tokens[0]
    layout.save_weights(target, llama_weights(reader, heads, key_heads))
    layout.write_json(
        target / "config.json",
        {
            "architectures": ["LlamaModel"],
            "model_type": "llama",
            "vocab_size": len(tokens),
            "hidden_size": field("llama.embedding_length"),
            "intermediate_size": field("llama.feed_forward_length"),
            "num_hidden_layers": field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": field("llama.context_length"),
            "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 12),
            "rope_theta": float(field("llama.rope.freq_base")),
            "tie_word_embeddings": True,
            "bos_token_id": field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": 0,
            "use_cache": False,
            "dtype": "float32",
            "torch_dtype": "float32",
        },
    )
    tokenizer = build_tokenizer(
        tokens, field("tokenizer.ggml.merges"), field("tokenizer.ggml.token_type"), end
    )
    # padding is not the end token: the last token of a text must stay recognisable
    layout.save_tokenizer(
        target,
        json.loads(tokenizer.to_str()),
        max_length=field("llama.context_length"),
        bos_token=tokens[1],
        eos_token=end,
        unk_token=pad,
        pad_token=pad,
    )
