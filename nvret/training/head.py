"""A linear head on a frozen encoder's vectors: a contextual student that trains in seconds.

The encoder reads each text once, whatever is compared afterwards (`nvret.encode.embed`). What is
trained is one matrix W, the same for queries and passages: a vector v becomes ``W v``, normalised.
W begins as the identity, so that step 0 is the base model. Pairs, their order, loss and schedule
are those of `nvret.training.finetune`, so that the two kinds of student compare.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from nvret.data import RetrievalDataset
from nvret.encode import Encoder, embed
from nvret.models import layout
from nvret.teachers import Scorer
from nvret.training import finetuning
from nvret.training.batches import Collator, Examples, mask_of
from nvret.training.config import TrainingConfig
from nvret.training.trainer import Shuffle, Student
from nvret.utils import processes, store
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError
from nvret.utils.products import linear

FILE = "head.safetensors"
BLOCK = 1 << 14  # vectors that are mapped at a time
# What says how a text becomes a vector, or how a run of hours goes on
UNUSED = (
    "query_max_length", "passage_max_length", "precision", "dropout", "lora_rank", "lora_alpha",
    "lora_dropout", "pooling", "bidirectional", "checkpoint_steps", "chunk_tokens",
    "gradient_checkpointing", "freeze_layers", "keep_frozen",
)  # fmt: skip


class Head(nn.Module):
    """The map, in the form in which `Student` and `Collator` call an encoder: texts are rows.

    Attributes:
        change: (D, D), W less the identity: weight decay then draws W towards the identity, the
            base model, and not towards zero.

    >>> Head(2)(torch.tensor([[0.6, 0.8]]))
    tensor([[0.6000, 0.8000]], grad_fn=<DivBackward0>)
    """

    dtype = torch.float32

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.change = nn.Parameter(torch.zeros(dimension, dimension))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) frozen vectors to (B, D), L2-normalised."""
        return nn.functional.normalize(vectors + linear(vectors, self.change), dim=-1)

    @property
    def weight(self) -> np.ndarray:
        """(D, D) float32, W."""
        return np.eye(self.dimension, dtype=np.float32) + self.change.detach().numpy()

    def prompt_tokens(self, kind: str) -> int:
        return 0

    def collate(self, vectors: Vectors, rows: np.ndarray) -> dict[str, Tensor]:
        return {"vectors": torch.from_numpy(vectors.values[rows])}

    def forward_all(self, batches: list[dict[str, Tensor]], _: list[int]) -> list[Tensor]:
        return [self(**batch) for batch in batches]


@dataclass(frozen=True)
class Vectors:
    """Frozen vectors (N, D), where a `Collator` has token ids; each is as long as any other."""

    values: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self.values), np.int64)


def train_head(
    dataset: RetrievalDataset,
    negatives: pa.Table,
    queries: np.ndarray,
    passages: np.ndarray,
    output: Path,
    config: TrainingConfig,
    *,
    seed: int,
    guide: Scorer | None = None,
    progress: bool = True,
) -> pa.Table:
    """Train a head as `nvret.training.finetune` trains an encoder, on the CPU.

    It writes no checkpoint. Under ``torchrun`` the first process trains.

    Args:
        queries, passages: (Q, D) and (N, D) float32, L2-normalised: the frozen encoder's vectors of
            the data set's rows, for example memory maps of `nvret.encode.embed`.
        output: folder to make: ``head.safetensors`` with W as ``weight`` (D, D),
            ``training_log.parquet`` and ``training.json``.
        config: batches, loss, optimizer and schedule. The vectors are there already, so what says
            how to make them (lengths, pooling, dropout, LoRA, …) must be left at its default.
        dataset, negatives, seed, guide: as there.
    Returns:
        the training log, as there.
    Raises:
        NvretError: as there; vectors that do not fit the data set; a setting that a head has no
            use for.
    """
    finetuning.check(config, guide)
    for name in UNUSED:
        value, default = getattr(config, name), TrainingConfig.model_fields[name].default
        if value not in (None, default):
            raise NvretError(f"{name} is {value!r}, expected {default!r}: a head has no use for it")
    output = Path(output)
    pairs = Examples.of(dataset, negatives)
    shape = len(passages), (queries.shape[1] if queries.ndim == 2 else 0)
    _check_vectors("queries", queries, (dataset.queries.num_rows, *shape[1:]))
    _check_vectors("passages", passages, (dataset.corpus.num_rows, *shape[1:]))
    inputs = {"vectors": store.fingerprint(queries, passages)}
    inputs |= finetuning.inputs_of(dataset, pairs, config, seed, guide)
    with store.shared_folder(output) as partial:
        if partial is None:
            return finetuning.completed(output, inputs)
        if processes.is_main_process():
            mask = mask_of(dataset, config, guide)
            head = Head(shape[1])
            batches = Collator(
                pairs, head, Vectors(queries), Vectors(passages), np.arange(len(queries)),
                np.arange(len(passages)), mask, sys.maxsize, sys.maxsize,
            )  # fmt: skip
            with processes.alone():
                log = _train(head, batches, config, seed, progress)
            if not torch.isfinite(head.change).all():
                raise NvretError(f"{output}: the weights are not finite; lower the learning rate")
            save_file({"weight": head.weight}, partial / FILE)
            pq.write_table(log, partial / "training_log.parquet")
            store.write_json(partial / "training.json", inputs)
    return pq.read_table(output / "training_log.parquet")


def _check_vectors(name: str, vectors: np.ndarray, shape: tuple[int, int]) -> None:
    if vectors.shape != shape or not shape[1]:
        raise NvretError(f"{name} have shape {vectors.shape}, expected {shape}: one vector a row")
    if vectors.dtype != np.float32:
        raise NvretError(f"{name} are {vectors.dtype}, expected float32")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if not (good := np.abs(norms - 1) < 1e-3).all():
        row = int(good.argmin())
        raise NvretError(f"{name}[{row}] has length {norms[row]:.4g}, expected 1")


def _train(
    head: Head, batches: Collator, config: TrainingConfig, seed: int, progress: bool
) -> pa.Table:
    """Train in place, step for step what ``Trainer`` does; the training log."""
    student = Student(head, config, batches.mask).train()
    order = Shuffle(len(batches.examples), seed)
    sampler = torch.utils.data.BatchSampler(order, config.batch_size, drop_last=False)
    steps = math.ceil(config.epochs * len(sampler))
    optimizer = torch.optim.AdamW(
        head.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    from transformers import get_scheduler  # takes a while to import

    warmup = math.ceil(steps * config.warmup_ratio)
    schedule = get_scheduler(config.schedule, optimizer, warmup, steps)
    history: list[dict[str, float]] = []
    losses: list[Tensor] = []
    pairs = round(len(order) * config.epochs)
    with progress_bar(total=pairs, desc="train head", unit="pair", show=progress) as bar:
        for step in range(1, steps + 1):
            epoch, place = divmod(step - 1, len(sampler))
            if place == 0:
                order.set_epoch(epoch)
                chosen = iter(sampler)
            loss = student(**batches(next(chosen)))["loss"]
            loss.backward()
            losses.append(loss.detach())
            norm = nn.utils.clip_grad_norm_(head.parameters(), config.max_grad_norm or math.inf)
            optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            optimizer.zero_grad()
            bar.update(min(config.batch_size, pairs - bar.n))
            if step % config.logging_steps == 0 or step == steps:
                row: dict[str, Any] = {"step": step, "epoch": epoch + (place + 1) / len(sampler)}
                row |= {"loss": torch.stack(losses).mean().item(), "learning_rate": rate}
                history.append(row | {"grad_norm": norm.item()})
                bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                losses.clear()
    return finetuning.table_of(history)


def load(folder: str | Path) -> np.ndarray:
    """The weight of a trained head, (D, D) float32."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise NvretError(f"{path}: no such file, expected the folder of a trained head")
    with layout.reading(Path(folder)):
        return load_file(path)["weight"]


def apply(folder: str | Path, vectors: np.ndarray) -> np.ndarray:
    """Frozen vectors (N, D) as the head maps them: (N, D) float32, L2-normalised.

    `NvretError` where no head is in ``folder``, or it is for vectors of another dimension.
    """
    weight = torch.from_numpy(load(folder))
    if vectors.ndim != 2 or vectors.shape[1] != len(weight):
        raise NvretError(f"vectors have shape {vectors.shape}, expected (N, {len(weight)})")
    mapped = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = torch.from_numpy(vectors[start : start + BLOCK].copy())  # of a read-only map
        block = nn.functional.normalize(linear(block, weight), dim=-1)
        mapped[start : start + BLOCK] = block.numpy()
    return mapped


# A frozen encoder's vectors by texts: to hash their content takes longer than to apply a head
_found: WeakKeyDictionary[Encoder, dict[tuple, np.ndarray]] = WeakKeyDictionary()


class HeadEncoder:
    """A frozen encoder whose vectors are kept, and the folder of a head (None: the base alone).

    ``wholes`` are the corpora that texts are parts of, for `nvret.encode.embed`. What
    `nvret.evaluation` can evaluate.
    """

    def __init__(
        self, base: Encoder, folder: Path | None = None, wholes: Sequence[Sequence[str]] = ()
    ) -> None:
        self.base, self.folder, self.wholes, self.device = base, folder, wholes, base.device

    def encode(
        self,
        texts: list[str],
        kind: str = "passage",
        *,
        max_length: int | None = None,
        progress: bool = True,
    ) -> np.ndarray:
        """(N, D) float32, L2-normalised. Under ``torchrun``, where each process asks for other
        texts, no vectors are kept."""
        options = {"max_length": max_length, "progress": progress}
        if processes.world()[1] > 1:
            vectors = self.base.encode(texts, kind, **options)
        else:
            found = _found.setdefault(self.base, {})
            key = kind, max_length, tuple(texts), tuple(map(len, self.wholes))
            if key not in found:
                found[key] = embed(self.base, texts, kind, wholes=self.wholes, **options)
            vectors = found[key]
        return vectors if self.folder is None else apply(self.folder, vectors)
