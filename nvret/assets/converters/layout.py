"""The sentence-transformers layout of a model folder, and a fingerprint of what is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nvret.utils.errors import NvretError

POOLING = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
# Scripts, accents, digits, spaces, a word that is in no vocabulary: two tokenizers that agree here
# and share a vocabulary are the same tokenizer.
PROBES = (
    "Who wrote the novel Frankenstein, and when?",
    "  The naïve café — 3,141.59 €; e-mail: a_b@example.org\t\n`` quoted '' ",
    "東京は日本の首都です。Москва — столица России. القاهرة عاصمة مصر",
    "Ǆungla ﬁne ½ ﷺ Å 🙂 antidisestablishmentarianism xqzvkjw",
)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_layout(
    target: Path,
    *,
    pooling: str,
    dimension: int,
    max_seq_length: int,
    prompts: dict[str, str],
) -> None:
    """Add the files that make ``target`` a sentence-transformers model.

    Args:
        pooling: "mean", "cls" or "last" of a transformer's token vectors, or "static".
        prompts: prefixes of a "query" and a "passage"; a passage is also called "document".
    """
    modules = "sentence_transformers.models."
    if pooling == "static":
        steps = [("", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    else:
        steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        write_json(
            target / "sentence_bert_config.json",
            {"max_seq_length": max_seq_length, "do_lower_case": False},
        )
        write_json(
            target / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": dimension,
                **{
                    f"pooling_mode_{mode}": mode == POOLING[pooling]
                    for mode in (
                        "cls_token",
                        "mean_tokens",
                        "max_tokens",
                        "mean_sqrt_len_tokens",
                        "weightedmean_tokens",
                        "lasttoken",
                    )
                },
                "include_prompt": True,
            },
        )
    write_json(
        target / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": modules + name}
            for index, (path, name) in enumerate(steps)
        ],
    )
    (target / steps[-1][0]).mkdir(exist_ok=True)
    write_json(target / steps[-1][0] / "config.json", {})
    write_json(
        target / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {**prompts, "document": prompts["passage"]},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def save_tokenizer(
    target: Path, tokenizer: dict[str, Any], *, max_length: int, **special: str
) -> None:
    """Write ``tokenizer.json`` without the truncation and padding that its last user left in it.

    The class is the plain one that reads this file as it is: the named ones build a tokenizer of
    their own from the vocabulary, and differ between versions of transformers.

    Args:
        tokenizer: content of a ``tokenizer.json``.
        max_length: tokens, special ones included, that the model can take.
        special: such as ``pad_token="[PAD]"``.
    """
    text = json.dumps(tokenizer | {"truncation": None, "padding": None}, ensure_ascii=False)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def read_tokenizer(source: Path) -> dict[str, Any]:
    return json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))


BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def bert_config(*, layers: int, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of a 384-wide BERT, as all of the MiniLM family are."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab_size,
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
        "pad_token_id": 0,
    }


def save_weights(target: Path, weights: dict[str, Any]) -> None:
    """Write NumPy arrays as ``model.safetensors``."""
    import numpy as np
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})


def unused_pooler(width: int) -> dict[str, Any]:
    """Zeros for BERT's pooler, where the source has none.

    No sentence encoder reads it, but ``AutoModel`` would fill it with random numbers: the same
    folder would then load as different weights each time.
    """
    import numpy as np

    return {
        "pooler.dense.weight": np.zeros((width, width), np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }


def content_fingerprint(folder: Path) -> str:
    """SHA-256 of a converted model: its tensors, and the tokens of :data:`PROBES`.

    It does not depend on how a library version lays out a file.
    """
    import numpy as np
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
