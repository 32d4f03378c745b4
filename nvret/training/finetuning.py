"""Fine-tuning of an encoder on mined negatives, on transformers' ``Trainer``.

A run is a pure function of base model, data set, negatives, configuration and seed. It can be
killed at any moment: the next call continues from the last complete checkpoint, with the random
state of that step, and ends with the same weights.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nvret.data import RetrievalDataset
from nvret.encode import Encoder
from nvret.models import unpadded
from nvret.teachers import Scorer
from nvret.training import frozen, lora, trainer
from nvret.training.batches import Collator, Examples
from nvret.training.config import TrainingConfig
from nvret.utils import processes, store
from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")


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
    prompts: Mapping[str, str | None] | None = None,
    progress: bool = True,
) -> pa.Table:
    """Fine-tune ``base`` on the data set's pairs and their mined negatives.

    Every (query, positive) pair of the data set is trained on, in an order that depends on the seed
    and the number of pairs alone, so two mining methods see the same queries in the same batches.
    A pair without negatives contributes no gradient unless there are in-batch negatives.

    Args:
        base: model folder or hub id, as in `Encoder.load`.
        negatives: columns query_id, positive_id, negative_id, rank, as `nvret.mining.mine` gives.
        output: folder to make: the model, ``training_log.parquet`` and ``training.json``. Nothing
            is there until the run is complete; a complete one is not repeated.
        seed: of the order, the dropout and the adapters.
        guide: a teacher that has read ``dataset``, for ``config.mask_margin``; not without it.
        device: None: CUDA where there is one.
        prompts: {"query": ..., "passage": ...}, as `Encoder.load` takes them; the model keeps them.
    Returns:
        the training log: step, epoch, loss (mean since the row before), learning_rate, grad_norm.
    Raises:
        NvretError: negatives that do not fit the data set; ``output`` holds another run; weights
            that are not finite; a guide without ``mask_margin`` or the other way round; settings
            that the model, or the number of processes, does not allow.
    """
    check(config, guide)
    output = Path(output)
    pairs = Examples.of(dataset, negatives)
    encoder = Encoder.load(
        base,
        prompts=prompts,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
    )
    if encoder.layout.static and (config.pooling, config.bidirectional) != (None, None):
        raise NvretError(f"{base}: a static model has neither pooling nor attention to choose")
    inputs = {"base": encoder.fingerprint} | inputs_of(dataset, pairs, config, seed, guide)
    prepare(encoder, config, seed)  # after the fingerprint, which is the base model's
    with store.shared_folder(output, keep_partial=True) as partial:
        if partial is None:
            return completed(output, inputs)
        main = processes.is_main_process()
        resume = processes.broadcast_object(_resumed(partial, inputs) if main else None)
        batches = Collator.of(encoder, dataset, pairs, config, progress and main, guide)
        if config.keep_frozen:
            above = frozen.kept(encoder, batches, config.freeze_layers, partial, progress and main)
        elif encoder.layout.static and not config.weight_decay:
            above = _occurring(encoder, batches)
        else:
            above = nullcontext(batches)
        with above as batches:
            run = trainer.make_trainer(
                encoder, batches, config, seed, partial / "checkpoints", progress
            )
            gc.freeze()  # accelerate looks for garbage after a run; in all there is, that is slow
            try:
                run.train(resume_from_checkpoint=str(resume) if resume else None)
            finally:
                gc.unfreeze()
        log_table = table_of(run.state.log_history)
        if config.lora_rank:
            lora.merge(encoder)
        if not all(torch.isfinite(weight).all() for weight in encoder.parameters()):
            raise NvretError(f"{output}: the weights are not finite; lower the learning rate")
        if main:
            encoder.eval().save(partial)
            pq.write_table(log_table, partial / "training_log.parquet")
            shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    return log_table


def check(config: TrainingConfig, guide: Scorer | None) -> None:
    """`NvretError` where these do not fit each other, or the number of processes."""
    asked = "mask_margin" if config.mask_perc is None else "mask_perc"
    value = getattr(config, asked)
    if guide is None and value is not None:
        raise NvretError(f"{asked} is {value}, but no guide is given")
    if guide is not None and value is None:
        raise NvretError(f"guide {guide.name!r} is given, but mask_margin is None")
    number = processes.world()[1]
    if config.batch_size % number:
        raise NvretError(f"batch_size is {config.batch_size}, expected a multiple of {number}")
    if number > 1 and config.chunk_tokens:
        raise NvretError("chunk_tokens is for one process, expected None under torchrun")
    if number > 1 and config.keep_frozen:
        raise NvretError("keep_frozen is for one process, expected False under torchrun")
    if config.keep_frozen and (not config.freeze_layers or config.lora_rank):
        raise NvretError("keep_frozen is True, expected freeze_layers, and no lora_rank with it")


def prepare(encoder: Encoder, config: TrainingConfig, seed: int) -> None:
    """Freeze layers, switch on checkpointing of activations, drop the padding, and add adapters."""
    if config.freeze_layers:
        frozen.freeze(encoder, config.freeze_layers)
    if config.gradient_checkpointing and not encoder.layout.static:
        with warnings.catch_warnings():  # newer releases of transformers have another name for it
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
            encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    half = config.precision == "bfloat16" and unpadded.is_fast(encoder.device, torch.bfloat16)
    if half and not encoder.layout.static and not config.keep_frozen:  # which reads padded layers
        unpadded.use(encoder.backbone)
    if config.lora_rank:
        lora.add(encoder, config.lora_rank, config.lora_alpha, config.lora_dropout, seed)


@contextmanager
def _occurring(encoder: Encoder, batches: Collator) -> Iterator[Collator]:
    """Within it, the table of a static encoder has only the tokens that occur in the batches.

    The optimizer passes over a whole table at each step, and the other rows' gradients are 0: where
    weights do not decay, they stay as they are.
    """
    table, tokens = encoder.backbone.weight.data, (batches.queries, batches.passages)
    used = np.unique(np.concatenate([some.ids for some in tokens]))
    own = [replace(some, ids=np.searchsorted(used, some.ids)) for some in tokens]
    encoder.backbone.weight = torch.nn.Parameter(table[used])
    yield replace(batches, queries=own[0], passages=own[1])
    table[used] = encoder.backbone.weight.data
    encoder.backbone.weight = torch.nn.Parameter(table)


def _resumed(partial: Path, inputs: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from; those of a run with other inputs are removed."""
    checkpoints = partial / "checkpoints"
    if (partial / "training.json").exists() and not _same_inputs(partial, inputs):
        log.warning("%s: an interrupted run had other inputs, starting anew", partial)
        shutil.rmtree(checkpoints, ignore_errors=True)
    store.write_json(partial / "training.json", inputs)
    steps = {int(path.name.rpartition("-")[2]): path for path in checkpoints.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        if (steps[step] / trainer.COMPLETE).exists():
            log.info("%s: continuing from %s", partial, steps[step].name)
            store.KEPT.add(steps[step])
            return steps[step]
        shutil.rmtree(steps[step])  # was cut off while it was written
    return None


def inputs_of(
    dataset: RetrievalDataset,
    pairs: Examples,
    config: TrainingConfig,
    seed: int,
    guide: Scorer | None,
) -> dict[str, Any]:
    """What a run rests on beside its base model, for ``training.json``."""
    return {
        "dataset": dataset.fingerprint,
        "examples": store.fingerprint(pairs.queries, pairs.positives, pairs.negatives),
        "config": config.model_dump(),
        "seed": seed,
        **({} if guide is None else {"guide": guide.fingerprint}),
    }


def completed(output: Path, inputs: dict[str, Any]) -> pa.Table:
    """The training log of a run that is there; `NvretError` if it had other inputs."""
    if not (output / "training.json").exists():
        raise NvretError(f"{output} exists and is not a training run")
    if not _same_inputs(output, inputs):
        raise NvretError(f"{output} holds a run with other inputs; choose another folder")
    return pq.read_table(output / "training_log.parquet")


def table_of(history: list[dict[str, float]]) -> pa.Table:
    """The training log, of the rows that ``Trainer`` keeps."""
    floats = dict.fromkeys(("epoch", "loss", "learning_rate", "grad_norm"), pa.float64())
    rows = [row for row in history if "loss" in row]
    return pa.Table.from_pylist(rows, pa.schema({"step": pa.int32()} | floats))


def _same_inputs(folder: Path, inputs: dict[str, Any]) -> bool:
    try:
        kept = json.loads((folder / "training.json").read_bytes())
        config = kept.get("config", {})
    except (ValueError, AttributeError):  # damaged, so those of no run
        return False
    # A run from before there was an option is one without it; checkpoints change no result
    config |= {"checkpoint_steps": inputs["config"]["checkpoint_steps"]}
    return kept | {"config": TrainingConfig().model_dump() | config} == inputs
