"""A Llama-like decoder in GGUF -> ``LlamaModel`` weights and its byte-level BPE tokenizer.

transformers reads the weights. Its tokenizer of a GGUF file is not SmolLM's, so that one is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvret.assets.converters.model_files import save_tokenizer, save_weights
from nvret.assets.registry import Model
from nvret.models.layout import write_json
from nvret.utils.errors import NvretError

_CONTROL = 3  # token type of special tokens


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
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return tokenizer


def llama_gguf(source: Path, target: Path, entry: Model) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModel

    from nvret.models.backbones import quiet

    reader = GGUFReader(str(source / "model.gguf"))

    def field(name: str) -> Any:
        if name not in reader.fields:
            raise NvretError(f"model.gguf: no field {name!r}")
        return reader.fields[name].contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.pre") != "smollm":
        raise NvretError("model.gguf: expected the architecture 'llama' with SmolLM's tokenizer")
    tokens = field("tokenizer.ggml.tokens")
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
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
    }
    own = AutoConfig.for_model(**config)  # else transformers reads the file for it, for seconds
    with quiet():
        model = AutoModel.from_pretrained(
            source, gguf_file="model.gguf", config=own, dtype=torch.float32, trust_remote_code=False
        )
    save_weights(target, {name: value.numpy() for name, value in model.state_dict().items()})
    write_json(target / "config.json", config)
    end, pad = tokens[config["eos_token_id"]], tokens[0]
    merges, types = field("tokenizer.ggml.merges"), field("tokenizer.ggml.token_type")
    # padding is not the end token: the last token of a text must stay recognisable
    save_tokenizer(
        target,
        build_tokenizer(tokens, merges, types, end).to_str(),
        max_length=config["max_position_embeddings"],
        bos_token=tokens[1],
        eos_token=end,
        unk_token=pad,
        pad_token=pad,
    )
