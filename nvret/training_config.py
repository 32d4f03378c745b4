"""How a model is fine-tuned: one declaration for Python, the profiles and the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvret.models.layout import POOLINGS
from nvret.utils.errors import NvretError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is fine-tuned; the data and the seed are arguments of `finetune`.

    Attributes:
        epochs: passes over the pairs.
        batch_size: queries a step; under ``torchrun`` each process takes its share of them.
        learning_rate: AdamW's peak learning rate.
        warmup_ratio: share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: AdamW's, not on biases and norms.
        schedule: "linear", "cosine", "constant" or "constant_with_warmup".
        temperature: of the InfoNCE loss.
        query_max_length, passage_max_length: tokens, prompt and special tokens included.
        in_batch_negatives: also take the batch's other passages, unless known to be relevant.
        mask_margin: leave out as well what a guide, a teacher, scores more than this above the
            pair's positive: 0.0 as GISTEmbed, 0.1 as Qwen3-Embedding; None: no guide. In the
            guide's units; needs ``in_batch_negatives``. Mined negatives are taken as they are.
        memory_bank: passages of earlier batches that are negatives too, with the vectors they had
            then and unless known to be relevant (or suspected by the guide); 0: none.
        precision: "float32", or "bfloat16" for autocast over float32 weights.
        dropout: rate of every dropout in the backbone; None: those of the model's own
            configuration (0.1 for BERT). Drawn from the seed. A static model has none.
        lora_rank: train adapters of this rank beside all linear layers, and merge them into the
            weights at the end (`nvret.models.lora`); None: train all weights.
        lora_alpha: the adapters' output is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: rate of the adapters' input.
        pooling: "mean", "cls" or "last"; None: what the base model's folder says.
        bidirectional: whether each token of a decoder sees those after it; None: likewise.
        max_grad_norm: gradients are scaled down to this norm; 0: never.
        checkpoint_steps: steps between checkpoints; 0: none.
        chunk_tokens: most tokens, padding included, whose activations are held at once, at the
            cost of a second forward pass; None: those of the whole batch. Changes no gradient.
        gradient_checkpointing: keep no activations inside of the backbone's layers, but compute
            them again: less memory for a third more time. Changes no gradient.
        logging_steps: steps between rows of the training log.

    >>> TrainingConfig(epochs=0)
    Traceback (most recent call last):
    nvret.utils.errors.NvretError: epochs is 0, expected > 0
    """

    epochs: float = 1
    batch_size: int = 32
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    schedule: str = "linear"
    temperature: float = 0.02
    query_max_length: int = 32
    passage_max_length: int = 64
    in_batch_negatives: bool = False
    mask_margin: float | None = None
    memory_bank: int = 0
    precision: str = "float32"
    dropout: float | None = None
    lora_rank: int | None = None
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    pooling: str | None = None
    bidirectional: bool | None = None
    max_grad_norm: float = 1.0
    checkpoint_steps: int = 100
    chunk_tokens: int | None = None
    gradient_checkpointing: bool = False
    logging_steps: int = 1

    def __post_init__(self) -> None:
        above = ("epochs", "batch_size", "learning_rate", "temperature", "query_max_length")
        for name in (*above, "passage_max_length", "logging_steps"):
            if not getattr(self, name) > 0:
                raise NvretError(f"{name} is {getattr(self, name)}, expected > 0")
        for name in ("weight_decay", "max_grad_norm", "checkpoint_steps", "memory_bank"):
            if not getattr(self, name) >= 0:
                raise NvretError(f"{name} is {getattr(self, name)}, expected >= 0")
        if not 0 <= self.warmup_ratio < 1:
            raise NvretError(f"warmup_ratio is {self.warmup_ratio}, expected in [0, 1)")
        if self.chunk_tokens is not None and not self.chunk_tokens > 0:
            raise NvretError(f"chunk_tokens is {self.chunk_tokens}, expected > 0")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise NvretError(f"dropout is {self.dropout}, expected in [0, 1)")
        if self.lora_rank is not None and not self.lora_rank > 0:
            raise NvretError(f"lora_rank is {self.lora_rank}, expected > 0")
        if not self.lora_alpha > 0:
            raise NvretError(f"lora_alpha is {self.lora_alpha}, expected > 0")
        if not 0 <= self.lora_dropout < 1:
            raise NvretError(f"lora_dropout is {self.lora_dropout}, expected in [0, 1)")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise NvretError(f"pooling is {self.pooling!r}, expected one of {list(POOLINGS)}")
        if self.mask_margin is not None:
            if not math.isfinite(self.mask_margin):
                raise NvretError(f"mask_margin is {self.mask_margin}, expected a finite number")
            if not self.in_batch_negatives:
                said = "expected None without in_batch_negatives"
                raise NvretError(f"mask_margin is {self.mask_margin}, {said}")
        if self.schedule not in SCHEDULES:
            raise NvretError(f"schedule is {self.schedule!r}, expected one of {SCHEDULES}")
        if self.precision not in ("float32", "bfloat16"):
            raise NvretError(f"precision is {self.precision!r}, expected 'float32' or 'bfloat16'")
