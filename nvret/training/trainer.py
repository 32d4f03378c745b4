"""The training loop: transformers' ``Trainer`` with our batches, our order and one progress bar."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from nvret.encode import Encoder
from nvret.losses import FalseNegativeMask, info_nce
from nvret.training import lora
from nvret.training.batches import Collator, CrossBatchMemory
from nvret.training.config import TrainingConfig
from nvret.utils import processes, store
from nvret.utils.bars import progress_bar

log = logging.getLogger("nvret")
COMPLETE = "complete"  # a checkpoint without this file was cut off while it was written
INTERVAL = 300.0  # seconds between checkpoints, where no number of steps is given


def make_trainer(
    encoder: Encoder,
    batches: Collator,
    config: TrainingConfig,
    seed: int,
    folder: Path,
    progress: bool,
) -> Trainer:
    """A quiet ``Trainer`` that trains ``encoder`` in place; its checkpoints go to ``folder``."""
    device = encoder.device.type
    run = _OrderedTrainer(
        model=Student(encoder, config, batches.mask),
        args=on_one_device(
            TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=config.epochs,
                per_device_train_batch_size=config.batch_size // processes.world()[1],
                learning_rate=config.learning_rate,
                lr_scheduler_type=config.schedule,
                warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                optim="adamw_torch_fused",
                bf16=config.precision == "bfloat16",
                use_cpu=device == "cpu",
                seed=seed,
                logging_steps=config.logging_steps,
                logging_nan_inf_filter=False,
                save_strategy="no",  # `_Progress` says when
                save_total_limit=2,  # the older one is whole while the newer one is being written
                dataloader_pin_memory=device == "cuda",
                remove_unused_columns=False,
                disable_tqdm=True,
                report_to="none",
                log_level="error",
            )
        ),
        train_dataset=batches.examples,
        data_collator=batches,
        callbacks=[_Progress(len(batches.examples), config, folder, progress)],
    )
    run.remove_callback(PrinterCallback)
    return run


class Student(nn.Module):
    """The encoder with its loss, in the form that ``Trainer`` calls.

    Attributes:
        memory: passages of earlier batches, None without; in the checkpoints, not in the model.
        mask: says which passages may not be negatives by chance; None: the loss takes none.
    """

    def __init__(
        self, encoder: Encoder, config: TrainingConfig, mask: FalseNegativeMask | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.settings, self.mask, self.memory = encoder, config, mask, None
        self.skip = encoder.prompt_tokens("query"), encoder.prompt_tokens("passage")
        if config.lora_rank:
            lora.checkpoint_trained_only(self)
        if config.memory_bank:
            dtype = torch.promote_types(encoder.dtype, torch.float32)
            self.memory = CrossBatchMemory(config.memory_bank, encoder.dimension, dtype)

    def forward(
        self,
        query_batches: list[dict[str, Tensor]],
        passage_batches: list[dict[str, Tensor]],
        query_order: Tensor,
        passage_order: Tensor,
        positives: Tensor,
        negatives: Tensor,
        query_rows: Tensor | None = None,
        passage_rows: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one batch as `Collator` makes it; in training its passages go into the memory."""
        count, config = len(query_batches), self.settings

        def loss_of(vectors: list[Tensor]) -> Tensor:  # called once, in chunks as well
            queries = torch.cat(vectors[:count])[query_order]
            passages = torch.cat(vectors[count:])[passage_order]
            places, chance = (positives, negatives), {}
            if self.mask is not None:  # else mined negatives alone
                mined = passage_rows[negatives.clamp_min(0)].masked_fill(negatives < 0, -1)
                listed = torch.cat([passage_rows[positives].unsqueeze(1), mined], 1)
                rows = passage_rows
                if processes.world()[1] > 1:
                    from nvret.scale import distributed

                    passages, rows, offset = distributed.pool(passages, passage_rows)
                    places = positives + offset, negatives + offset * (negatives >= 0)
                pairs = query_rows, listed, padding
                chance = {"known": self._excluded(*pairs, rows)}
                if self.memory is not None:
                    known = self._excluded(*pairs, self.memory.rows)
                    if config.in_batch_negatives:  # what is in the batch has a newer vector
                        known |= torch.isin(self.memory.rows, rows)
                    chance |= {"bank": self.memory.vectors, "bank_known": known}
                    if self.training:
                        order = rows.argsort()[(rows < 0).sum() :]  # as in one process
                        self.memory.push(rows[order], passages[order])
            return info_nce(
                queries,
                passages,
                *places,
                temperature=config.temperature,
                in_batch=config.in_batch_negatives,
                hardness=config.hardness,
                **chance,
            )

        batches = [*query_batches, *passage_batches]
        skips = [self.skip[0]] * count + [self.skip[1]] * len(passage_batches)
        if config.chunk_tokens is None:
            loss = loss_of(self.encoder.forward_all(batches, skips))
            if padding is not None:
                from nvret.scale import distributed

                loss = loss * distributed.per_pair(padding)
            return {"loss": loss}
        from nvret.scale.grad_cache import chunked_loss

        return {"loss": chunked_loss(self.encoder, batches, skips, config.chunk_tokens, loss_of)}

    def _excluded(
        self, queries: Tensor, listed: Tensor, padding: Tensor | None, passages: Tensor
    ) -> Tensor:
        """(B, V) bool, which passages may not be further negatives of a pair.

        ``queries`` are (B,) rows; ``listed`` (B, 1 + K) corpus rows of positive and negatives, -1
        for none; ``passages`` (V,) corpus rows, -1 for none.
        """
        filled = passages >= 0
        excluded = (passages == listed.unsqueeze(2)).any(1) | ~filled
        pairs = (queries, listed[:, 0], passages[filled])
        relevant = self.mask(*(rows.cpu().numpy() for rows in pairs))
        excluded[:, filled] |= torch.from_numpy(relevant).to(excluded.device)
        # a pair that fills the batch up has no negatives, and so no loss
        return excluded if padding is None else excluded | padding[:, None]


class _OrderedTrainer(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffle:
        several = self.args.world_size > 1
        unit = self.args.train_batch_size * self.args.world_size if several else 1
        return Shuffle(len(self.train_dataset), self.args.seed, unit)


class Shuffle(torch.utils.data.Sampler[int]):
    """A new order every epoch, that depends on the seed and the number of pairs alone.

    Several processes need whole batches: pairs of the last batch, as ``~pair``, fill it up to a
    multiple of ``unit``, and `Collator` marks them as padding.

    >>> list(Shuffle(4, seed=0)) == list(Shuffle(4, seed=0))
    True
    >>> order = list(Shuffle(4, seed=0, unit=3))
    >>> [~pair for pair in order[4:]] == [order[3]] * 2
    True
    """

    def __init__(self, size: int, seed: int, unit: int = 1) -> None:
        self.size, self.seed, self.unit, self.epoch = size, seed, unit, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.unit) * self.unit

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        last = order[self.size - self.size % self.unit :]
        yield from order.tolist()
        yield from (~np.resize(last, len(self) - self.size)).tolist()


class _Progress(TrainerCallback):
    """One bar, counted in pairs; when checkpoints are due, and which of them are complete."""

    def __init__(self, size: int, config: TrainingConfig, folder: Path, progress: bool) -> None:
        self.total, self.folder, self.progress = round(size * config.epochs), folder, progress
        self.every = config.checkpoint_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = args.train_batch_size * args.world_size
        self.kept_step, self.kept_time = state.global_step, time.monotonic()
        self.bar = progress_bar(
            total=self.total,
            initial=min(state.global_step * self.step, self.total),
            desc="train",
            unit="pair",
            show=self.progress and state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(min(self.step, self.total - self.bar.n))
        last = state.global_step == state.max_steps
        control.should_log |= last
        # A resumed run begins a new mean of the loss. So that the log does not depend on when a
        # checkpoint was written, one is written where a row of the log ends; after the last step
        # the model is.
        control.should_save = control.should_log and not last and self._is_due(state.global_step)

    def _is_due(self, step: int) -> bool:
        if self.every is None:  # by the first process's clock
            late = time.monotonic() - self.kept_time >= INTERVAL
            return processes.broadcast_object(late)
        return self.every > 0 and step // self.every > self.kept_step // self.every

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.kept_step, self.kept_time = state.global_step, time.monotonic()
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            for path in checkpoint.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            (checkpoint / COMPLETE).touch()
            store.KEPT.add(checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Keep ``Trainer`` from spreading a batch over all GPUs that it sees: ``nn.DataParallel`` would
    cut our batches at the wrong places."""
    if arguments.n_gpu > 1:
        log.warning("%d GPUs are visible, one is used; torchrun uses them all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments
