"""What turns tokens into token vectors, a transformers model or a static table, and their pooling.

Only safetensors are read, and a folder that lacks a weight is refused: transformers would go on
with a random one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvret.models import unpadded
from nvret.utils import products
from nvret.utils.errors import NvretError


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def see_both_ways(backbone: nn.Module) -> None:
    """Let each token see those after it, in place.

    transformers reads ``config.is_causal`` for its masks only: a batch without padding needs no
    mask, and its attention would then fall back to what each layer was built as.
    """
    backbone.config.is_causal = False
    for module in backbone.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def load_static(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The token table of a StaticEmbedding or model2vec folder, and its tokenizer."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise NvretError(f"{folder}: has no {name}")
    weights = load_file(folder / "model.safetensors")
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None:
        raise NvretError(f"{folder / 'model.safetensors'}: no 'embedding.weight' or 'embeddings'")
    if "mapping" in weights:  # model2vec: a token's row, where several tokens share one
        table = table[weights["mapping"].long()]
    if "weights" in weights:
        table = table.float() * weights["weights"].float()[:, None]
    bag = nn.EmbeddingBag.from_pretrained(table.to(dtype), freeze=False, mode="mean")
    return bag, Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    bidirectional: bool | None,
    dropout: float | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, Any]:
    """A transformers backbone without its task head, and its fast tokenizer.

    ``bidirectional`` (whether each token sees those after it) and ``dropout`` (the rate of every
    dropout in training) are as the folder says where they are None.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if not (folder / "config.json").exists():
        raise NvretError(f"{folder}: has no config.json, so it is not a model folder")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except ValueError as error:  # code that comes with it, or a type that is unknown
            raise NvretError(f"{folder / 'config.json'}: {error}") from error
        if bidirectional is not None:
            config.is_causal = not bidirectional
        rates = {}
        if dropout is not None:  # all of its names end so, from BERT's to GPT-2's
            ends = ("dropout", "dropout_prob", "pdrop")
            rates = {key: rate for key, rate in vars(config).items() if key.endswith(ends)}
            vars(config).update(dict.fromkeys(rates, dropout))
        extra = {}
        kind = MODEL_MAPPING.get(type(config), None)
        if kind is not None and "add_pooling_layer" in inspect.signature(kind).parameters:
            extra = {"add_pooling_layer": False}  # BERT's own pooler is not used
        backbone, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **extra,
        )
        vars(backbone.config).update(rates)  # built with `dropout`, saved with its own
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=trust_remote_code
        )
    products.use(backbone)
    if getattr(config, "is_causal", None) is False:
        see_both_ways(backbone)
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:4])
        raise NvretError(f"{folder}: {len(missing)} weights are missing: {names}")
    return backbone, tokenizer


def run(backbone: nn.Module, words: dict[str, Tensor], mask: Tensor | None) -> Tensor:
    """(B, L, H) token vectors of a padded batch, as `unpadded.run` where the backbone reads so.

    ``words`` are "input_ids", (B, L), or "inputs_embeds", (B, L, H); ``mask`` (B, L) is 1 for a
    token, 0 for padding, which is on the right, or None: no padding.
    """
    options = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}  # of generation
    if unpadded.used(backbone):
        return unpadded.run(backbone, words | options, mask)
    return backbone(**words, **options, attention_mask=mask).last_hidden_state


def save(folder: Path, backbone: nn.Module, tokenizer: Any) -> None:
    """Write weights and tokenizer as `load_static` or `load_transformer` reads them."""
    if isinstance(backbone, nn.EmbeddingBag):
        from safetensors.torch import save_file

        weight = backbone.weight.detach().cpu().contiguous()
        save_file({"embedding.weight": weight}, folder / "model.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        return
    with quiet():
        backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


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
