"""How a model is fine-tuned: declared once for Python, the profiles and the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nvret.utils.settings import Section


class TrainingConfig(Section):
    """Hyperparameters; the data and the seed are arguments of `nvret.training.finetune`.

    >>> TrainingConfig(epochs=2).learning_rate
    2e-05
    >>> TrainingConfig(epochs=0)
    Traceback (most recent call last):
    pydantic_core._pydantic_core.ValidationError: 1 validation error for TrainingConfig
    epochs
      Input should be greater than 0 ...
    """

    epochs: float = Field(1, gt=0)
    """Passes over the pairs."""

    batch_size: int = Field(32, gt=0)
    """Queries a step; under torchrun each process takes its share of them."""

    learning_rate: float = Field(2e-5, gt=0)
    """AdamW's peak learning rate."""

    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = Field(0.01, ge=0)
    """AdamW's, not on biases and norms."""

    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate goes on after its peak."""

    temperature: float = Field(0.02, gt=0)
    """Of the InfoNCE loss: what cosines are divided by."""

    query_max_length: int = Field(32, gt=0)
    """Tokens of a query, prompt and special tokens included."""

    passage_max_length: int = Field(64, gt=0)
    """Tokens of a passage, likewise."""

    in_batch_negatives: bool = False
    """Also take the batch's other passages, unless known to be relevant."""

    mask_margin: float | None = Field(None, allow_inf_nan=False)
    """Leave out as well what a guide, a teacher, scores more than this above the pair's positive:
    0.0 as GISTEmbed, 0.1 as Qwen3-Embedding; none: no guide. In the guide's units; needs in-batch
    negatives. Mined negatives are taken as they are."""

    mask_perc: float | None = Field(None, gt=0, le=2)
    """Likewise, what a guide scores above this share of the pair's positive (0.95), instead of a
    margin."""

    hardness: float = Field(0.0, ge=0, allow_inf_nan=False)
    """A mined negative weighs exp(hardness * cosine) times as much in the loss, as in
    EmbeddingGemma (5); 0: all weigh the same."""

    memory_bank: int = Field(0, ge=0)
    """Passages of earlier batches that are negatives too, with the vectors they had then and unless
    known to be relevant (or suspected by the guide); 0: none."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Float32, or bfloat16 for autocast over float32 weights."""

    dropout: float | None = Field(None, ge=0, lt=1)
    """Rate of every dropout in the backbone, drawn from the seed; none: those of the model's own
    configuration (0.1 for BERT). A static model has no dropout."""

    freeze_layers: int = Field(0, ge=0)
    """Leave the embeddings and this many of the lowest layers as they are, without dropout. No
    gradient goes down there, which saves two thirds of those layers' work and more."""

    keep_frozen: bool = False
    """Run what is frozen once for each text, and keep what it gives on the disk while training
    runs: for each token four bytes times the model's width."""

    lora_rank: int | None = Field(None, gt=0)
    """Train adapters of this rank beside all linear layers, and merge them into the weights at the
    end; none: train all weights."""

    lora_alpha: int = Field(32, gt=0)
    """The adapters' output is scaled by alpha / rank."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Rate of the adapters' input."""

    pooling: Literal["mean", "cls", "last"] | None = None
    """Token vectors to one vector; none: what the base model's folder says."""

    bidirectional: bool | None = None
    """Whether each token of a decoder sees those after it; none: as the base model says."""

    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""

    checkpoint_steps: int | None = Field(None, ge=0)
    """Steps between checkpoints, each at the next row of the training log; 0: no checkpoint; none:
    one every five minutes. Changes no result."""

    chunk_tokens: int | None = Field(None, gt=0)
    """Most tokens, padding included, whose activations are held at once, at the cost of a second
    forward pass; none: those of the whole batch. Changes no gradient."""

    gradient_checkpointing: bool = False
    """Keep no activations inside of the backbone's layers, but compute them again: less memory for
    a third more time. Changes no gradient."""

    logging_steps: int = Field(1, gt=0)
    """Steps between rows of the training log."""

    @model_validator(mode="after")
    def _guided(self) -> TrainingConfig:
        for name in ("mask_margin", "mask_perc"):
            value = getattr(self, name)
            if value is not None and not self.in_batch_negatives:
                raise ValueError(f"{name} is {value}, expected none without in_batch_negatives")
        if None not in (self.mask_margin, self.mask_perc):
            raise ValueError("mask_margin and mask_perc are both given, expected one of them")
        return self
