"""LoRA: two narrow matrices beside each linear layer are trained, the weights stay as they are.

A saved model is an ordinary folder, since `merge` adds the adapters to the weights. Checkpoints
hold the adapters alone: a resumed run loads the base model anyway.

Source: arXiv 2106.09685 (LoRA); rank 16 and alpha 32 as in arXiv 2407.15831 (NV-Retriever).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from nvret.utils.errors import NvretError


def add(encoder: nn.Module, rank: int, alpha: int, dropout: float, seed: int) -> None:
    """Freeze the backbone and put adapters beside all of its linear layers, in place.

    A layer's output becomes ``W x + alpha / rank * B A x``. B begins as zeros, so that the vectors
    are those of the base model until the first step; A, whose input has the dropout, is drawn from
    the seed. The global random state is left as it was. `NvretError` for a static model.
    """
    if encoder.layout.static:
        raise NvretError("lora_rank is for transformers: a static model has no linear layer")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        # attention and MLP, without which LoRA stays behind full fine-tuning (arXiv 2305.14314,
        # section 4); by kind of layer, since each architecture names them in its own way
        target_modules="all-linear",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.random.default_generator.manual_seed(seed)  # peft draws on the CPU in any case
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        encoder.backbone = get_peft_model(encoder.backbone, config)


def merge(encoder: nn.Module) -> None:
    """Add the adapters to the weights and take them away, in place; the opposite of `add`."""
    encoder.backbone = encoder.backbone.merge_and_unload().requires_grad_(True)


def checkpoint_trained_only(model: nn.Module) -> None:
    """Let the state dict of ``model`` leave out, and its loading not miss, what is frozen.

    >>> model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    >>> checkpoint_trained_only(model)
    >>> list(model.state_dict())
    ['1.weight', '1.bias']
    >>> model.load_state_dict(model.state_dict())
    <All keys matched successfully>
    """

    def frozen() -> set[str]:
        return {name for name, weight in model.named_parameters() if not weight.requires_grad}

    def saved(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name in frozen():
            del state[prefix + name]

    def loaded(_: nn.Module, keys: Any) -> None:
        left_out = frozen()
        keys.missing_keys[:] = [name for name in keys.missing_keys if name not in left_out]

    model.register_state_dict_post_hook(saved)
    model.register_load_state_dict_post_hook(loaded)
