"""Weights, configuration and tokenizer of a converted model, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from nvret.models.layout import write_json
from nvret.utils.errors import NvretError

# Scripts, accents, digits, spaces, a word that is in no vocabulary: two tokenizers that agree here
# and share a vocabulary are the same tokenizer.
PROBES = (
    "Who wrote the novel Frankenstein, and when?",
    "  The naïve café — 3,141.59 €; e-mail: a_b@example.org\t\n`` quoted '' ",
    "東京は日本の首都です。Москва — столица России. القاهرة عاصمة مصر",
    "Ǆungla ﬁne ½ ﷺ Å 🙂 antidisestablishmentarianism xqzvkjw",
)
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def save_tokenizer(target: Path, tokenizer: str, *, max_length: int, **special: str) -> None:
    """Write a ``tokenizer.json`` without the truncation and padding that its last user left in it.

    The class is the plain one that reads this file as it is: the named ones build a tokenizer of
    their own from the vocabulary, and differ between versions of transformers.
    """
    content = json.loads(tokenizer) | {"truncation": None, "padding": None}
    text = json.dumps(content, ensure_ascii=False)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    write_json(target / "tokenizer_config.json", config | special)


def save_weights(target: Path, weights: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})


def save_bert(target: Path, weights: dict[str, np.ndarray], *, layers: int, pad: int = 0) -> None:
    """Write weights and ``config.json`` of a BERT, 384 wide as all of the MiniLM family are.

    The pooler, which the sources lack, becomes zeros. No sentence encoder reads it, but
    ``AutoModel`` would fill it with random numbers: the same folder would then load as different
    weights each time. ``pad`` is the id of the padding token.
    """
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    pooler = {
        "pooler.dense.weight": np.zeros((width, width), np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }
    save_weights(target, weights | pooler)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "pad_token_id": pad,
    }
    write_json(target / "config.json", config)


def content_fingerprint(folder: Path) -> str:
    """SHA-256 of a converted model: its tensors, and the tokens of :data:`PROBES`.

    It does not depend on how a library version lays out a file. `NvretError` for NaN or infinity.
    """
    from safetensors import safe_open
    from tokenizers import Tokenizer

    digest = hashlib.sha256()
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
                raise NvretError(f"{folder.name}: tensor {name} holds NaN or infinity")
            digest.update(f"{name}:{tensor.dtype.str}:{tensor.shape}:".encode())
            digest.update(np.ascontiguousarray(tensor).data)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    digest.update(json.dumps([tokenizer.encode(probe).ids for probe in PROBES]).encode())
    return digest.hexdigest()
