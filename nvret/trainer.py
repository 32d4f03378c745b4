"""The training loop: transformers' ``Trainer`` with our batches, our order and one progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nvret.encode import Encoder
from nvret.examples import Collator, Examples
from nvret.gradcache import chunked_loss
from nvret.losses import info_nce

if TYPE_CHECKING:
    from nvret.dataset import RetrievalDataset
    from nvret.training import TrainingConfig

# Tokens of a batch, and of its padding. On a CPU a batch should stay near its caches, yet each
# further one adds up the gradients of all weights once more.
BUDGETS = {"cpu": (2048, 64), "cuda": (32768, 2048)}
COMPLETE = "complete"  # a checkpoint without this file was cut off while it was written


class Student(nn.Module):
    """The encoder with its loss, in the form that ``Trainer`` calls."""

    def __init__(self, encoder: Encoder, config: TrainingConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.temperature, self.in_batch = config.temperature, config.in_batch_negatives
        self.chunk_tokens = config.chunk_tokens or sys.maxsize
        self.skip = encoder.prompt_tokens("query"), encoder.prompt_tokens("passage")

    def forward(
        self,
        query_batches: list[dict[str, Tensor]],
        passage_batches: list[dict[str, Tensor]],
        query_order: Tensor,
        passage_order: Tensor,
        positives: Tensor,
        negatives: Tensor,
        known: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one batch as `nvret.examples.Collator` makes it."""
        count = len(query_batches)
        skips = [self.skip[0]] * count + [self.skip[1]] * len(passage_batches)

        def loss_of(vectors: list[Tensor]) -> Tensor:
            return info_nce(
                torch.cat(vectors[:count])[query_order],
                torch.cat(vectors[count:])[passage_order],
                positives,
                negatives,
                temperature=self.temperature,
                in_batch=self.in_batch,
                known=known,
            )

        batches = [*query_batches, *passage_batches]
        return {"loss": chunked_loss(self.encoder, batches, skips, self.chunk_tokens, loss_of)}


class Shuffle(torch.utils.data.Sampler[int]):
    """A new order every epoch, that depends on the seed and the number of pairs alone.

    >>> list(Shuffle(4, seed=0)) == list(Shuffle(4, seed=0))
    True
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        return iter(rng.permutation(self.size).tolist())


def collator(
    encoder: Encoder,
    dataset: RetrievalDataset,
    pairs: Examples,
    config: TrainingConfig,
    progress: bool,
) -> Collator:
    """Tokenize the texts that the pairs use, once."""
    texts = (dataset.query_texts, dataset.passages)
    used = (pairs.queries, np.append(pairs.positives, pairs.negatives))
    lengths = (config.query_max_length, config.passage_max_length)
    tokens, slots = [], []
    for kind, text, rows, length in zip(("query", "passage"), texts, used, lengths, strict=True):
        rows = np.unique(rows[rows >= 0])
        slot = np.full(len(text), -1, np.int64)
        slot[rows] = np.arange(len(rows))
        chosen = [text[row] for row in rows]
        tokens.append(encoder.tokenize(chosen, kind, max_length=length, progress=progress))
        slots.append(slot)
    relevant = dataset.positives if config.in_batch_negatives else None
    budget, slack = BUDGETS["cpu" if encoder.device.type == "cpu" else "cuda"]
    budget = min(budget, config.chunk_tokens or budget)
    if encoder.layout.static:  # pads nothing and looks up all texts at once
        budget = slack = sys.maxsize
    return Collator(pairs, encoder, *tokens, *slots, relevant=relevant, budget=budget, slack=slack)


def trainer(
    encoder: Encoder,
    batches: Collator,
    config: TrainingConfig,
    seed: int,
    folder: Path,
    progress: bool,
) -> Any:
    """transformers' ``Trainer``, quiet, with our order of the pairs and one progress bar."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    size = len(batches.examples)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = min(state.global_step * args.train_batch_size, round(size * config.epochs))
            total = round(size * config.epochs)
            self.bar = tqdm(
                total=total, initial=done, desc="train", unit="pair", disable=not progress
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(min(args.train_batch_size, self.bar.total - self.bar.n))
            # a checkpoint starts a new window of the mean loss, so that a resumed log is the same
            control.should_log |= control.should_save or state.global_step == state.max_steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = folder / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero:
                for path in checkpoint.iterdir():
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
                (checkpoint / COMPLETE).touch()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Shuffle:
            return Shuffle(size, seed)

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=config.precision == "bfloat16",
        use_cpu=encoder.device.type == "cpu",
        seed=seed,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.checkpoint_steps else "no",
        save_steps=config.checkpoint_steps or 1,
        save_total_limit=2,  # the older one is whole while the newer one is being written
        dataloader_pin_memory=encoder.device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    made = Ordered(
        model=Student(encoder, config),
        args=arguments,
        train_dataset=batches.examples,
        data_collator=batches,
        callbacks=[Callback()],
    )
    made.remove_callback(PrinterCallback)
    return made
