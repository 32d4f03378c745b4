"""Untrained models of a few kilobytes, built with a seed of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from nvret import assets

NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def write_static(folder: Path) -> None:
    """A real static model cut to its first 16 dimensions: training steps take no time."""
    from safetensors.torch import load_file, save_file

    source = assets.model_path("potion-base-8m")
    skip = shutil.ignore_patterns("manifest.json", "*.safetensors")
    shutil.copytree(source, folder, ignore=skip, dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    narrow = {name: weight[:, :16].contiguous() for name, weight in weights.items()}
    save_file(narrow, folder / "model.safetensors")


def _tokenizer(folder: Path) -> int:
    """A real tokenizer saved into the folder; the size of its vocabulary."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        assets.model_path("paraphrase-minilm-l3"), trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_bert(folder: Path) -> None:
    """BERT, with its usual dropout of 0.1."""
    from transformers import BertConfig, BertModel

    size = _tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=size, num_attention_heads=4, **NARROW)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def write_llama(folder: Path) -> None:
    """A causal decoder, whose queries share heads of keys and values."""
    from transformers import LlamaConfig, LlamaModel

    size = _tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=size, num_attention_heads=4, num_key_value_heads=2, **NARROW
        )
        LlamaModel(config).save_pretrained(folder)


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Matrices that no generator draws, so that they are the same with every release of torch."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters(), 1):
            if weight.ndim > 1:
                angles = torch.arange(weight.numel(), dtype=torch.float64).add(number).mul(12.9898)
                values = angles.sin().mul(43758.5453).frac()  # in (-1, 1), as if at random
                weight.copy_(0.5 * values.reshape(weight.shape))
    return model


def write_causal(folder: Path) -> None:
    """A Llama that says its next token, filled without a generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=_tokenizer(folder), num_attention_heads=4, **NARROW)
    fill(LlamaForCausalLM(config)).save_pretrained(folder)


def write_cross_encoder(folder: Path) -> None:
    """A BERT that scores a pair of texts, filled without a generator."""
    from transformers import BertConfig, BertForSequenceClassification

    size = _tokenizer(folder)
    config = BertConfig(vocab_size=size, num_attention_heads=4, num_labels=1, **NARROW)
    fill(BertForSequenceClassification(config)).save_pretrained(folder)
