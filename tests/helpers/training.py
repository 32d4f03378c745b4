"""A toy set, negatives for it, and small training runs on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from helpers import shared
from helpers.models import write_static
from nvret.data import RetrievalDataset
from nvret.training import finetune, trainer
from nvret.training.config import TrainingConfig

STATIC = shared("tiny-static", write_static)
RATE = {"static": 0.1, "bert": 1e-3}  # a table of tokens needs a far higher learning rate
CONFIG = TrainingConfig(batch_size=8, learning_rate=0.1, logging_steps=2, checkpoint_steps=0)


class Table:
    """A guide that looks its scores up in a table of all queries and passages."""

    name, fingerprint = "table", "of the test"

    def __init__(self, scores):
        self.scores = np.asarray(scores, np.float32)

    def pair_scores(self, query_rows, passage_rows):
        return self.scores[query_rows, passage_rows]

    def block_scores(self, query_rows, passage_rows):
        return self.scores[np.ix_(query_rows, passage_rows)]


def changed(config: TrainingConfig, **changes) -> TrainingConfig:
    """The configuration with some other values, checked like any."""
    return TrainingConfig(**config.model_dump() | changes)


def fitting(base: Path, **changes) -> TrainingConfig:
    """A configuration with the learning rate that the kind of model needs."""
    kind = "static" if base == STATIC else "bert"
    return changed(CONFIG, learning_rate=RATE[kind], **changes)


def toy(queries=40, passages=60, words=12, seed=0):
    """Random words; some queries have two positives."""
    rng = np.random.default_rng(seed)
    vocabulary = ["river", "stone", "moon", "market", "tide", "law", "garden", "engine", "salt"]

    def text(n):
        return " ".join(rng.choice(vocabulary, int(rng.integers(2, n))))

    qrels = {(int(q), int(rng.integers(passages))) for q in [*range(queries), *range(5)]}
    rows = [(f"q{q}", f"p{p}", 1) for q, p in sorted(qrels)]
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    ids = [f"p{i}" for i in range(passages)]
    texts = [text(words) for _ in range(passages)]
    return RetrievalDataset(
        "toy",
        corpus=pa.table({"id": ids, "title": [""] * passages, "text": texts}),
        queries=pa.table(
            {"id": [f"q{i}" for i in range(queries)], "text": [text(6) for _ in range(queries)]}
        ),
        qrels=pa.table(columns, names=["query_id", "corpus_id", "score"]),
    )


def mined(dataset, per_pair=3, seed=0, skip=()):
    rng = np.random.default_rng(seed)
    rows = []
    for query, positive in zip(*dataset.pairs, strict=True):
        allowed = np.setdiff1d(np.arange(dataset.corpus.num_rows), dataset.positives[query])
        if query in skip:
            continue
        for rank, negative in enumerate(rng.choice(allowed, per_pair, replace=False), 1):
            rows.append((f"q{query}", f"p{positive}", f"p{negative}", rank))
    names = ["query_id", "positive_id", "negative_id", "rank"]
    order = rng.permutation(len(rows))  # the table's order must not matter
    return pa.table([pa.array([rows[i][c] for i in order]) for c in range(4)], names=names)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(a, b, atol=0.0):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=name)


def run(output, dataset=None, negatives=None, config=CONFIG, base=STATIC, seed=1):
    dataset = dataset or toy()
    negatives = mined(dataset) if negatives is None else negatives
    return finetune(
        base, dataset, negatives, output, config, seed=seed, device="cpu", progress=False
    )


class Stopped(Exception):
    pass


@contextlib.contextmanager
def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """The training run inside of the block fails in this step."""
    forward, steps = trainer.Student.forward, []

    def stopping(self, *args, **batch):
        steps.append(self)
        if len(steps) == step:
            raise Stopped
        return forward(self, *args, **batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Student, "forward", stopping)
        with pytest.raises(Stopped):
            yield
