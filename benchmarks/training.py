"""Training steps against sentence-transformers' trainer: same model, texts, batches and loss.

A run is one epoch of a few steps with its tokenization, which we do once for all steps and
sentence-transformers in every batch. Models are loaded and trainers built before.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback

from benchmarks.encoding import anew
from benchmarks.harness import Case, interleaved
from benchmarks.table import PEER
from nvret import assets, data, mining
from nvret.cost.calibration import MEBIBYTE, Run
from nvret.data import RetrievalDataset
from nvret.encode import Encoder
from nvret.methods import NaiveTopK
from nvret.training import finetuning, frozen, trainer
from nvret.training.batches import Collator, Examples
from nvret.training.config import TrainingConfig

PAIRS = 2_200  # questions that are mined
NEGATIVES = 4


def cases(smoke: bool) -> list[Case]:
    """A transformer and a static model with in-batch negatives, and the loss in chunks."""
    rounds = 1 if smoke else 3
    small = {"batch_size": 4, "passage_max_length": 32} if smoke else {}
    bert = TrainingConfig(
        **{"batch_size": 16, "passage_max_length": 128} | small,
        learning_rate=1e-4,
        temperature=0.05,
        in_batch_negatives=True,
        schedule="constant",
        warmup_ratio=0,
        weight_decay=0,
        checkpoint_steps=0,
        logging_steps=10_000,
    )
    static = bert.model_copy(update={"batch_size": 8 if smoke else 128, "learning_rate": 0.04})
    steps = 1 if smoke else 2
    return [
        _against("paraphrase-minilm-l3", bert, steps, rounds),
        _against("potion-base-8m", static, steps if smoke else 16, rounds),
        *_frozen("paraphrase-minilm-l3", bert, steps, rounds),
        _chunks("paraphrase-minilm-l3", bert, 128 if smoke else 2048, 1 if smoke else 3),
    ]


def _against(name: str, config: TrainingConfig, steps: int, rounds: int) -> Case:
    """Whole runs of both trainers."""
    pairs = take(steps * config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (side(name, pairs, config, Path(folder)) for side in (Ours, Theirs))
        check_loss(ours, theirs)
        seconds = interleaved({"nvret": ours.run, PEER: theirs.run}, rounds)
    return Case(
        name,
        f"{name}: {steps} steps of {_sizes(config)}",
        seconds,
        work=(steps, "step"),
        facts={"share of distinct passages in a batch": distinct(pairs, config.batch_size)},
    )


def _frozen(name: str, config: TrainingConfig, steps: int, rounds: int) -> list[Case]:
    """All layers trained; the last one alone; and with what is below it run once for each text."""
    pairs, layers, epochs = take(steps * config.batch_size), 2, 3
    ways = {
        "nvret": {},
        f"nvret, {layers} layers frozen": {"freeze_layers": layers},
        f"nvret, {layers} layers frozen and kept": {"freeze_layers": layers, "keep_frozen": True},
    }
    with tempfile.TemporaryDirectory() as path:
        sides = {
            side: Ours(name, pairs, config.model_copy(update={"epochs": epochs, **own}), Path(path))
            for side, own in ways.items()
        }
        seconds = interleaved({side: one.run for side, one in sides.items()}, rounds)
    runs = f"{name}: {epochs} epochs of {steps} steps of {_sizes(config)}"
    return [
        Case(key, f"{runs}{side.removeprefix('nvret')}", seconds, work=(epochs * steps, "step"))
        for key, side in zip(("frozen", "kept"), list(ways)[1:], strict=True)
    ]


def _chunks(name: str, config: TrainingConfig, tokens: int, rounds: int) -> Case:
    """Loss and gradients of one batch: as a whole, and with few activations held."""
    pairs = take(config.batch_size)
    chunked = config.model_copy(update={"chunk_tokens": tokens})
    texts = tokens // config.passage_max_length
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        sides = {
            "nvret": Ours(name, pairs, config, folder),
            "nvret, in chunks": Ours(name, pairs, chunked, folder),
            PEER: Theirs(name, pairs, config, folder),
            f"{PEER}, in chunks": Theirs(name, pairs, config, folder, mini_batch_size=texts),
        }
        for side in list(sides)[1:]:
            check_loss(sides["nvret"], sides[side])
        runs = {side: partial(_gradients, trained) for side, trained in sides.items()}
        held = {side: held_for_backward(run, sides[side].model) for side, run in runs.items()}
        seconds = interleaved(runs, rounds, warm_up=0)  # counting the bytes was the warm-up
    return Case(
        "chunks",
        f"{name}: loss and gradients of {_sizes(config)}; {tokens} tokens a chunk",
        seconds,
        mebibytes=held,
        facts={"mebibytes": "held by autograd at once, weights left out"},
    )


def _gradients(side: Ours | Theirs) -> None:
    side.model.train()
    side.model.zero_grad()
    side.loss(range(side.trainer.args.train_batch_size)).backward()


def _sizes(config: TrainingConfig) -> str:
    texts = f"{config.batch_size} queries × {1 + NEGATIVES} passages"
    return f"{texts} of at most {config.passage_max_length} tokens"


@cache
def mined() -> tuple[RetrievalDataset, Examples]:
    """Some questions of NQ in random order, each with the passages that BM25 ranks highest."""
    dataset = data.load("nq", progress=False)
    ids = np.random.default_rng(0).permutation(dataset.queries["id"].to_pylist())
    dataset = dataset.select(ids[:PAIRS].tolist())
    table = mining.mine(dataset, "bm25", NaiveTopK(), NEGATIVES, progress=False)
    return dataset, Examples.of(dataset, table)


def take(number: int) -> Examples:
    """Pairs of `mined`, one a question, with all negatives: theirs may not be fewer."""
    pairs = mined()[1]
    rows = np.unique(pairs.queries, return_index=True)[1]
    rows = rows[(pairs.negatives[rows] >= 0).all(1)][:number]
    return Examples(pairs.queries[rows], pairs.positives[rows], pairs.negatives[rows])


class Ours:
    """A trainer of `nvret`. A run tokenizes all texts, and runs what is kept of them."""

    def __init__(
        self,
        name: str,
        pairs: Examples,
        config: TrainingConfig,
        folder: Path,
        device: str | torch.device = "cpu",
    ) -> None:
        path = assets.model_path(name)
        self.encoder = Encoder.load(path, device=device, dropout=config.dropout)
        finetuning.prepare(self.encoder, config, 0)
        self.pairs, self.config, self.folder = pairs, config, folder
        self.trainer = trainer.make_trainer(
            self.encoder, self.tokenized(), config, 0, folder, False
        )

    def tokenized(self) -> Collator:
        return Collator.of(anew(self.encoder), mined()[0], self.pairs, self.config, False)

    def run(self) -> None:
        batches, number = self.tokenized(), self.config.freeze_layers
        own = nullcontext(batches)
        if self.config.keep_frozen:
            own = frozen.kept(self.encoder, batches, number, self.folder, False)
        with own as self.trainer.data_collator:
            self.trainer.train()

    def loss(self, rows: Sequence[int]) -> Tensor:
        return self.trainer.model(**self.trainer.data_collator(rows))["loss"]

    @property
    def model(self) -> nn.Module:
        return self.trainer.model


class Theirs:
    """sentence-transformers' trainer, with the same settings and the same batches."""

    def __init__(
        self, name: str, pairs: Examples, config: TrainingConfig, folder: Path, **chunks: int
    ) -> None:
        dataset = mined()[0]
        self.model = SentenceTransformer(
            str(assets.model_path(name)), device="cpu", trust_remote_code=False
        )
        most = config.passage_max_length  # no question is as long
        if isinstance(self.model[0], StaticEmbedding):
            self.model.tokenizer.enable_truncation(most)
        else:
            self.model.max_seq_length = most
        columns = {"query": pairs.queries, "positive": pairs.positives}
        columns |= {f"negative {i}": column for i, column in enumerate(pairs.negatives.T)}
        texts = {
            name: [(dataset.query_texts if name == "query" else dataset.passages)[i] for i in rows]
            for name, rows in columns.items()
        }
        self.rows = Dataset.from_dict(texts)
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim="adamw_torch_fused",
            use_cpu=True,
            batch_sampler=_in_order,
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        kind = "CachedMultipleNegativesRankingLoss" if chunks else "MultipleNegativesRankingLoss"
        self.trainer = SentenceTransformerTrainer(
            model=self.model,
            args=arguments,
            train_dataset=self.rows.select(list(trainer.Shuffle(len(pairs), 0))),
            loss=getattr(losses, kind)(self.model, scale=1 / config.temperature, **chunks),
        )
        self.trainer.remove_callback(PrinterCallback)

    def run(self) -> None:
        self.trainer.train()

    def loss(self, rows: Sequence[int]) -> Tensor:
        batch = self.trainer.data_collator([self.rows[int(row)] for row in rows])
        return self.trainer.compute_loss(self.trainer.model, batch)


def _in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size, drop_last)


def check_loss(ours: Ours, theirs: Theirs) -> None:
    """The two losses of one batch are the same, where no passage is repeated in it.

    A passage that several pairs of a batch name is several in-batch negatives of a further pair in
    their loss, and one in ours; and a pair's own positive can be its negative in theirs.
    """
    pairs, rows, seen = ours.pairs, [], set()
    for row in range(len(pairs)):
        passages = {int(pairs.positives[row]), *pairs.negatives[row].tolist()}
        if not passages & seen:
            rows.append(row)
            seen |= passages
    rows = rows[: ours.config.batch_size]
    ours.model.eval(), theirs.model.eval()  # without dropout
    with torch.no_grad():
        loss, expected = ours.loss(rows).item(), theirs.loss(rows).item()
    if len(rows) < 2 or not np.isclose(loss, expected, rtol=1e-4):
        raise AssertionError(f"loss of {len(rows)} pairs: {loss}, {PEER} {expected}")


def distinct(pairs: Examples, size: int) -> float:
    """Share of the passages of a batch that are left when each is kept once; mean."""
    order = np.array(list(trainer.Shuffle(len(pairs), 0)))
    listed = np.column_stack([pairs.positives, pairs.negatives])[order]
    batches = [listed[start : start + size] for start in range(0, len(listed), size)]
    return float(np.mean([len(np.unique(batch)) / batch.size for batch in batches]))


def held_for_backward(run: Run, model: nn.Module) -> float:
    """Most mebibytes that autograd holds at once; every storage once, the weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    count: Counter[int] = Counter()
    now = most = 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
            count[self.place] += 1
            if count[self.place] == 1 and self.place not in weights:
                now += tensor.untyped_storage().nbytes()
                most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            count[self.place] -= 1
            if count[self.place] == 0 and self.place not in weights:
                now -= self.tensor.untyped_storage().nbytes()

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return most / MEBIBYTE
