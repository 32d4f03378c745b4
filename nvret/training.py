"""Fine-tuning of an encoder on mined negatives, on transformers' ``Trainer``.

A run is a pure function of base model, data set, negatives, configuration and seed. It can be
killed at any moment: the next call continues from the last complete checkpoint, with the random
state of that step, and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nvret import examples, lora, processes, store, trainer
from nvret.encode import Encoder
from nvret.errors import NvretError
from nvret.layout import POOLINGS

if TYPE_CHECKING:
    from nvret.dataset import RetrievalDataset
    from nvret.teachers import Scorer

log = logging.getLogger("nvret")

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
            weights at the end (`nvret.lora`); None: train all weights.
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
    nvret.errors.NvretError: epochs is 0, expected > 0
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


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those cut off are removed."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        if (found[step] / trainer.COMPLETE).exists():
            return found[step]
        shutil.rmtree(found[step])
    return None


def _log_table(history: list[dict[str, float]]) -> pa.Table:
    rows = [row for row in history if "loss" in row]
    columns = {"step": pa.int32(), "epoch": pa.float64(), "loss": pa.float64()}
    columns |= {"learning_rate": pa.float64(), "grad_norm": pa.float64()}
    schema = pa.schema(list(columns.items()))
    return pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows], schema)


def finetune(
    base: str | Path,
    dataset: RetrievalDataset,
    negatives: pa.Table,
    output: Path,
    config: TrainingConfig,
    *,
    seed: int,
    guide: Scorer | None = None,
    device: str | None = None,
    progress: bool = True,
) -> pa.Table:
    """Fine-tune ``base`` on the data set's pairs and their mined negatives.

    Every (query, positive) pair of the data set is trained on, in an order that depends on the seed
    and the number of pairs alone, so two mining methods see the same queries in the same batches.
    A pair without negatives contributes no gradient unless there are in-batch negatives.

    Args:
        base: model folder or hub id, as in `Encoder.load`.
        dataset: the pairs and texts.
        negatives: columns query_id, positive_id, negative_id, rank, as `nvret.mining.mine` gives.
        output: folder to make: the model, ``training_log.parquet`` and ``training.json``. Nothing
            is there until the run is complete; a complete one is not repeated.
        config: hyperparameters.
        seed: of the order, the dropout and the adapters.
        guide: a teacher that has read ``dataset``, for ``config.mask_margin``; not without it.
        device: "cpu" or "cuda"; None: CUDA where there is one.
    Returns:
        the training log: step, epoch, loss (mean since the row before), learning_rate, grad_norm.
    Raises:
        NvretError: negatives that do not fit the data set; ``output`` holds another run; a loss
            that is not finite; a guide without ``mask_margin`` or the other way round; a static
            model with LoRA, or with a pooling or attention to choose.
    """
    if guide is None and config.mask_margin is not None:
        raise NvretError(f"mask_margin is {config.mask_margin}, but no guide is given")
    if guide is not None and config.mask_margin is None:
        raise NvretError(f"guide {guide.name!r} is given, but mask_margin is None")
    output = Path(output)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pairs = examples.build(dataset, negatives)
    encoder = Encoder.load(
        base,
        device=device,
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
    )
    if encoder.layout.static and (config.pooling, config.bidirectional) != (None, None):
        raise NvretError(f"{base}: a static model has neither pooling nor attention to choose")
    inputs = {
        "base": encoder.fingerprint,
        "dataset": dataset.fingerprint,
        "examples": store.fingerprint(pairs.queries, pairs.positives, pairs.negatives),
        "config": dataclasses.asdict(config),
        "seed": seed,
    }
    number = processes.world()[1]
    if config.batch_size % number:
        raise NvretError(f"batch_size is {config.batch_size}, expected a multiple of {number}")
    if number > 1 and config.chunk_tokens:
        raise NvretError("chunk_tokens is for one process, expected None under torchrun")
    if guide is not None:
        inputs["guide"] = guide.fingerprint
    if config.gradient_checkpointing and not encoder.layout.static:
        backbone = encoder.backbone
        with warnings.catch_warnings():  # newer releases of transformers have another name for it
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora_rank:  # after the fingerprint, which is the base model's
        lora.add(encoder, config.lora_rank, config.lora_alpha, config.lora_dropout, seed)
    with store.shared_folder(output, keep_partial=True) as partial:
        if partial is None:
            _check_inputs(output, inputs)
            return pq.read_table(output / "training_log.parquet")
        checkpoints, resume = partial / "checkpoints", None
        if first := processes.first():
            if (partial / "training.json").exists() and not _same_inputs(partial, inputs):
                log.warning("%s: an interrupted run had other inputs, starting anew", output)
                shutil.rmtree(checkpoints, ignore_errors=True)
            store.write_json(partial / "training.json", inputs)
            resume = _last_checkpoint(checkpoints)
        resume = processes.agreed(resume)
        if resume and first:
            log.info("%s: continuing from %s", output, resume.name)
        batches = trainer.collator(encoder, dataset, pairs, config, progress and first, guide)
        run = trainer.trainer(encoder, batches, config, seed, checkpoints, progress)
        run.train(resume_from_checkpoint=str(resume) if resume else None)
        table = _log_table(run.state.log_history)
        if config.lora_rank:
            lora.merge(encoder)
        if not all(torch.isfinite(weight).all() for weight in encoder.parameters()):
            raise NvretError(f"{output}: the weights are not finite; lower the learning rate")
        if first:
            encoder.eval().save(partial)
            pq.write_table(table, partial / "training_log.parquet")
            shutil.rmtree(checkpoints, ignore_errors=True)
    return table


def _same_inputs(folder: Path, inputs: dict[str, Any]) -> bool:
    said = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    # a run from before there was an option is one without it
    said["config"] = dataclasses.asdict(TrainingConfig()) | said.get("config", {})
    return said == inputs


def _check_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    if not (folder / "training.json").exists():
        raise NvretError(f"{folder} exists and is not a training run")
    if not _same_inputs(folder, inputs):
        raise NvretError(f"{folder} holds a run with other inputs; choose another folder")
