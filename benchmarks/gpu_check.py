"""``python -m benchmarks.gpu_check``: every path on a GPU, beside the CPU's result.

A table says for each path how long it took and how far its result is from the CPU's; the exit
status is 1 where one fails or is too far. ``--device cpu`` runs the same paths without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from nvret import assets, data, evaluation, mining, search, teachers, training
from nvret.encode import Encoder
from nvret.methods import TopKPercPos
from nvret.scale import screen
from nvret.study import mixtures

TRANSFORMER, STATIC, DECODER = "paraphrase-minilm-l3", "potion-base-8m", "smollm2-135m"
LENGTHS = {"query_max_length": 32, "passage_max_length": 64}
PATHS: dict[str, tuple[float, Callable[[str], float]]] = {}  # name -> tolerance, difference


def path(name: str, tolerance: float) -> Callable:
    """Register a path: a function of the device that gives its difference from the CPU."""

    def add(difference: Callable[[str], float]) -> Callable:
        PATHS[name] = tolerance, difference
        return difference

    return add


def small() -> data.RetrievalDataset:
    """32 real questions among 100 passages."""
    return mixtures.sample_passages(mixtures.sample(data.load("squadshifts-nyt"), 32), 100)


def vectors(rows: int, seed: int) -> np.ndarray:
    """(rows, 384) float32 of unit length."""
    drawn = np.random.default_rng(seed).standard_normal((rows, 384), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def encoded(name: str, device: str, dtype: str = "float32") -> np.ndarray:
    encoder = Encoder.load(assets.model_path(name), device=device, dtype=dtype)
    return encoder.encode(small().passages, max_length=64, progress=False)


def far(device: str, name: str, dtype: str) -> float:
    """1 less the smallest cosine between a text's vectors on the two devices."""
    return 1 - float((encoded(name, "cpu") * encoded(name, device, dtype)).sum(1).min())


for _name in (STATIC, TRANSFORMER, DECODER):
    for _dtype, _tolerance in (("float32", 1e-4), ("bfloat16", 2e-2)):

        @path(f"encode {_name}, {_dtype}", _tolerance)
        def _encode(device: str, name: str = _name, dtype: str = _dtype) -> float:
            return far(device, name, dtype)


@path("exact search under a ceiling", 1e-4)
def _search(device: str) -> float:
    queries, corpus = vectors(300, 0), vectors(40_000, 1)
    ceiling = np.linspace(0.05, 0.3, len(queries), dtype=np.float32)
    found = [
        search.top_k(queries, corpus, 50, ceiling=ceiling, exclude=[[1, 2]] * 300, device=where)
        for where in ("cpu", device)
    ]
    return float((found[0].scores - found[1].scores.cpu()).abs().max())


@path("exact search behind a screen", 1e-6)
def _screen(device: str) -> float:
    queries, corpus = vectors(300, 0), vectors(40_000, 1)
    ceiling = np.linspace(0.05, 0.3, len(queries), dtype=np.float32)
    options = {"ceiling": ceiling, "exclude": [[1, 2]] * 300}
    found = screen.top_k(queries, corpus, 50, device=device, **options)
    plain = search.top_k(queries, corpus, 50, **options)
    return float((found.scores - plain.scores).abs().max())


@path("faiss index", 1e-4)
def _index(device: str) -> float:
    from nvret.scale.faiss_index import Index, Searcher

    queries, corpus = vectors(50, 0), vectors(4000, 1)
    found = Searcher(corpus, Index("IVF16,Flat", 16)).top_k(queries, 10)  # reads all lists
    return float((search.top_k(queries, corpus, 10).scores - found.scores).abs().max())


@path("mine", 0.02)
def _mine(device: str) -> float:
    tables = [
        mining.mine(
            small(), teachers.DenseTeacher(TRANSFORMER, device=where), TopKPercPos(), progress=False
        ).to_pandas()
        for where in ("cpu", device)
    ]
    keys = [set(zip(table.query_id, table.negative_id, strict=True)) for table in tables]
    return 1 - len(keys[0] & keys[1]) / len(keys[0])


@path("evaluate", 0.01)
def _evaluate(device: str) -> float:
    means = [
        evaluation.evaluate(
            Encoder.load(assets.model_path(TRANSFORMER), device=where), small(), **LENGTHS,
            progress=False,
        ).summary["ndcg_at_10"]
        for where in ("cpu", device)
    ]  # fmt: skip
    return abs(means[0] - means[1])


def trained(device: str, model: str, **changes: object) -> np.ndarray:
    """The loss of each step."""
    dataset = small()
    table = mining.mine(dataset, "bm25", TopKPercPos(), progress=False)
    settings = {"batch_size": 8, "dropout": 0.0, "in_batch_negatives": True, **LENGTHS}
    config = training.TrainingConfig(**settings | changes)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        base = assets.model_path(model)
        training.finetune(
            base, dataset, table, output, config, seed=0, device=device, progress=False
        )
        return pq.read_table(output / "training_log.parquet")["loss"].to_numpy()


for _label, _tolerance, _model, _changes in (
    ("train static", 1e-2, STATIC, {"learning_rate": 1e-2}),
    ("train transformer", 1e-2, TRANSFORMER, {}),
    ("train transformer, bfloat16", 0.2, TRANSFORMER, {"precision": "bfloat16"}),
    ("train transformer in chunks", 1e-2, TRANSFORMER, {"chunk_tokens": 512}),
    ("train transformer, memory bank", 1e-2, TRANSFORMER, {"memory_bank": 64}),
    ("train decoder by adapters", 0.2, DECODER,
     {"lora_rank": 8, "pooling": "mean", "bidirectional": True, "gradient_checkpointing": True}),
):  # fmt: skip

    @path(_label, _tolerance)
    def _train(device: str, model: str = _model, changes: dict = _changes) -> float:
        losses = [trained(where, model, **changes) for where in ("cpu", device)]
        return float(np.abs(losses[0] - losses[1]).max())


@path("judge by a language model", 0.05)
def _judge(device: str) -> float:
    from nvret.analysis import judges

    dataset = small()
    pairs = dataset.query_texts[:8], dataset.passages[:8], dataset.passages[8:16]
    scores = [
        judges.load(DECODER, device=where).scores(*pairs, progress=False).values
        for where in ("cpu", device)
    ]
    return float(np.abs(scores[0] - scores[1]).max())


def check(device: str, names: list[str]) -> pd.DataFrame:
    """Run the paths; a row each: path, seconds, difference, tolerance, ok."""
    rows = []
    for name in names:
        tolerance, difference = PATHS[name]
        start, value = time.perf_counter(), float("nan")
        try:
            value = difference(device)
        except Exception:  # the table shows every path, whatever the others do
            traceback.print_exc()
        seconds = time.perf_counter() - start
        rows.append([name, round(seconds, 1), value, tolerance, value <= tolerance])
        print(f"{name}: {'ok' if value <= tolerance else 'FAILED'}", file=sys.stderr, flush=True)
    return pd.DataFrame(rows, columns=["path", "seconds", "difference", "tolerance", "ok"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PATH", help=f"some of: {'; '.join(PATHS)}")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in PATHS]:
        parser.error(f"no path {', '.join(unknown)}; expected some of: {'; '.join(PATHS)}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu runs the same paths without one")
    table = check(chosen.device, chosen.names or list(PATHS))
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return 0 if table["ok"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
