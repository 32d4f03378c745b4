"""On a GPU: search against ``matmul + topk``, encoding and training against the bfloat16 product.

Everything is there before: vectors, models and texts, and on the GPU what belongs there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.encoding import anew
from benchmarks.harness import Case, interleaved
from benchmarks.search import unit
from benchmarks.table import PEER
from benchmarks.training import Ours, take
from nvret import assets, data
from nvret.cost import work
from nvret.cost.calibration import Run
from nvret.encode import Encoder
from nvret.models import unpadded
from nvret.scale import fused, screen
from nvret.search import SearchResult, top_k
from nvret.training.config import TrainingConfig
from nvret.utils import machine

MODEL = "minilm-l6"
SIDE = 4096  # of the square matrices whose product is the yardstick
AT_ONCE = 1024  # queries of a product, for ``topk`` needs all of its scores


def cases(smoke: bool) -> list[Case]:
    """A million passages of 768 dimensions; NQ's passages; steps of training in bfloat16.

    ``NvretError`` without a GPU, unless it is only to see whether it runs.
    """
    device = machine.check_device("cpu" if smoke and not torch.cuda.is_available() else "cuda")
    return [_search(device, smoke), _encoding(device, smoke), _training(device, smoke)]


def _search(device: torch.device, smoke: bool) -> Case:
    size, count, width, k = (9_000, 64, 64, 64) if smoke else (1_000_000, 8192, 768, 64)
    corpus, asked = (unit(rows, width, seed).to(device) for rows, seed in ((size, 0), (count, 1)))
    best = top_k(asked[:AT_ONCE], corpus, 41)
    # A ceiling that cuts off about the best 32, and 8 ids to leave out
    ceiling = best.scores[:, 32].median().expand(count)
    below = {"ceiling": ceiling, "exclude": [best.ids[0, 33:].tolist()] * count}
    sides = {
        "nvret": lambda: top_k(asked, corpus, k),
        "nvret, ceiling": lambda: top_k(asked, corpus, k, **below),
        "nvret, screen": lambda: screen.top_k(asked, corpus, k),
        "nvret, screen, ceiling": lambda: screen.top_k(asked, corpus, k, **below),
        "matmul + topk": lambda: _plain(asked, corpus, k),
        "product": lambda: [torch.mm(rows, corpus.T) for rows in asked.split(AT_ONCE)],
    }
    _check(*(sides[side]() for side in ("matmul + topk", "nvret", "nvret, screen")))
    _check(*(sides[side]() for side in ("nvret, ceiling", "nvret, screen, ceiling")))
    return Case(
        "search",
        f"top-{k} of {size:,} × {width}",
        interleaved(sides, 2 if smoke else 5),
        work=(2e-9 * count * size * width, "GFLOP"),
        facts={
            "TF32": "on" if torch.backends.cuda.matmul.allow_tf32 else "off",
            "the screen is": "one kernel" if fused.is_there(device) else "a product",
        },
    )


def _plain(queries: Tensor, corpus: Tensor, k: int) -> SearchResult:
    parts = [torch.mm(rows, corpus.T).topk(k) for rows in queries.split(AT_ONCE)]
    return SearchResult(*(torch.cat([part[i] for part in parts]).cpu() for i in (1, 0)))


def _check(first: SearchResult, *others: SearchResult) -> None:
    for other in others:
        torch.testing.assert_close(first.scores, other.scores, atol=2e-6, rtol=0)
        assert (first.ids == other.ids).double().mean() > 0.999


def _encoding(device: torch.device, smoke: bool) -> Case:
    passages, length = data.load("nq").passages, 256
    order = np.random.default_rng(0).permutation(len(passages))
    texts = [passages[row] for row in order[: 24 if smoke else 60_000]]
    path, options = assets.model_path(MODEL), {"max_length": length, "progress": False}
    ours, padded = (Encoder.load(path, device=device, dtype="bfloat16") for _ in range(2))
    padded.backbone.config._attn_implementation = "sdpa"
    theirs = SentenceTransformer(
        str(path), device=str(device), trust_remote_code=False,
        model_kwargs={"dtype": torch.bfloat16},
    )  # fmt: skip
    theirs.max_seq_length = length
    tokens = ours.tokenize(texts, max_length=length, progress=False).lengths.sum()
    operations = work.forward_operations(_layers(ours), float(tokens))
    sides = {
        "nvret": lambda: anew(ours).encode(texts, **options),
        "nvret, padded": lambda: anew(padded).encode(texts, **options),
        PEER: lambda: theirs.encode(
            texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False
        ),
        "product": _product(operations, device),
    }
    vectors = [sides[side]() for side in list(sides)[:3]]
    for other in vectors[1:]:
        assert (vectors[0] * other).sum(1).mean() > 0.99
    seconds = interleaved(sides, 1 if smoke else 3)
    return Case(
        "encoding",
        f"{MODEL} in bfloat16, {len(texts):,} passages of NQ of at most {length} tokens",
        seconds,
        work=(len(texts), "passages"),
        facts=_percent(seconds)
        | {"attention without padding": "yes" if unpadded.used(ours.backbone) else "no"},
    )


def _training(device: torch.device, smoke: bool) -> Case:
    steps = 1 if smoke else 8
    small = {"batch_size": 4, "passage_max_length": 32} if smoke else {}
    config = TrainingConfig(
        **{"batch_size": 256, "passage_max_length": 256} | small,
        precision="bfloat16", dropout=0.0, temperature=0.05, in_batch_negatives=True,
        checkpoint_steps=0, logging_steps=10_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(MODEL, take(steps * config.batch_size), config, Path(folder), device)
        batches = ours.tokenized()
        texts = len(batches.queries), len(batches.passages)
        tokens = sum(int(some.lengths.sum()) for some in (batches.queries, batches.passages))
        operations = work.training_operations(_layers(ours.encoder), tokens, config)
        seconds = interleaved(
            {"nvret": ours.run, "product": _product(operations, device)}, 1 if smoke else 3
        )
    return Case(
        "training",
        f"{MODEL} in bfloat16: {steps} steps, {texts[0]:,} queries and {texts[1]:,} passages of at "
        f"most {config.passage_max_length} tokens",
        seconds,
        work=(steps, "step"),
        facts=_percent(seconds),
    )


def _layers(encoder: Encoder) -> int:
    """Parameters that multiply: all but the tables that words and positions are looked up in."""
    tables = (part for part in encoder.backbone.modules() if isinstance(part, torch.nn.Embedding))
    looked_up = sum(table.weight.numel() for table in tables)
    return sum(weight.numel() for weight in encoder.backbone.parameters()) - looked_up


def _product(operations: float, device: torch.device) -> Run:
    """As many operations (roughly, the smallest part being one product) in bfloat16."""
    side = SIDE if device.type == "cuda" else 256
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    rounds = max(1, round(operations / (2 * side**3)))

    def run() -> None:
        for _ in range(rounds):
            torch.mm(matrix, matrix)

    return run


def _percent(seconds: dict[str, list[float]]) -> dict[str, float]:
    ratios = np.array(seconds["product"]) / np.array(seconds["nvret"])
    return {"percent of the bfloat16 product's rate": round(100 * float(np.median(ratios)), 1)}
