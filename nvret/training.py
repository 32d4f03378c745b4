"""Fine-tuning of an encoder on mined negatives, on transformers' ``Trainer``.

A run is a pure function of base model, data set, negatives, configuration and seed. It can be
killed at any moment: the next call continues from the last complete checkpoint, with the random
state of that step, and ends with the same weights.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nvret import trainer
from nvret.encode import Encoder
from nvret.models import lora
from nvret.training_config import TrainingConfig
from nvret.utils import processes, store
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.data import RetrievalDataset
    from nvret.teachers import Scorer

log = logging.getLogger("nvret")


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
    pairs = negatives.build(dataset, negatives)
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
        "config": config.model_dump(),
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
        if first := processes.is_main_process():
            if (partial / "training.json").exists() and not _same_inputs(partial, inputs):
                log.warning("%s: an interrupted run had other inputs, starting anew", output)
                shutil.rmtree(checkpoints, ignore_errors=True)
            store.write_json(partial / "training.json", inputs)
            resume = _last_checkpoint(checkpoints)
        resume = processes.broadcast_object(resume)
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
    said["config"] = TrainingConfig().model_dump() | said.get("config", {})
    return said == inputs


def _check_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    if not (folder / "training.json").exists():
        raise NvretError(f"{folder} exists and is not a training run")
    if not _same_inputs(folder, inputs):
        raise NvretError(f"{folder} holds a run with other inputs; choose another folder")
