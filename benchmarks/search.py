"""Exact top-k search against the bare matrix product, plain ``topk`` and faiss."""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Target, interleaved
from nvret.cost.calibration import Run
from nvret.search import SearchResult, top_k

TITLE = "Exact search"
PACKAGES = ["torch", "numpy", "faiss-cpu"]
TILE = 256  # queries a product, on every side


def cases(smoke: bool) -> list[Case]:
    """Top-64 without and with a ceiling, at two widths."""
    passages, queries, rounds = (9_000, 300, 2) if smoke else (200_000, 4_096, 5)
    found = []
    for dimension, plain, limited in ((384, 1.15, 1.3), (768, 1.08, 1.15)):
        found += _cases(passages, queries, dimension, rounds, plain, limited)
    return found


def _cases(
    passages: int, queries: int, dimension: int, rounds: int, plain: float, limited: float
) -> list[Case]:
    corpus, asked = unit(passages, dimension, 0), unit(queries, dimension, 1)
    index = faiss.IndexFlatIP(dimension)
    index.add(corpus.numpy())
    few = asked[: queries // 8]  # faiss is slow, and an eighth says as much
    _check(index, few, corpus)

    # A ceiling that cuts off the best 32 of each query, and 8 ids to leave out below it
    best = top_k(asked, corpus, 41)
    ceiling = best.scores[:, 32]
    exclude = list(best.ids[:, 33:].numpy())
    product = _product(asked, corpus)
    sizes = f"of {passages:,} × {dimension}"
    seconds = interleaved(
        {
            "product": product,
            "nvret": lambda: top_k(asked, corpus, 64),
            "nvret, ceiling": lambda: top_k(asked, corpus, 64, ceiling=ceiling, exclude=exclude),
        },
        rounds,
    )
    others = interleaved(
        {
            "nvret": lambda: top_k(few, corpus, 64),
            "matmul + topk": lambda: _plain(few, corpus, 64),
            "faiss-cpu": lambda: index.search(few.numpy(), 64),
        },
        rounds,
    )
    return [
        Case(
            f"top-64 {sizes}",
            seconds,
            [Target("nvret", "product", plain)],
            work=(2e-9 * queries * passages * dimension, "GFLOP"),
        ),
        Case(
            f"top-64 below a ceiling, 8 ids excluded, {sizes}",
            seconds,
            [Target("nvret, ceiling", "product", limited)],
            work=(2e-9 * queries * passages * dimension, "GFLOP"),
        ),
        Case(
            f"top-64 {sizes}, against others",
            others,
            [Target("nvret", "faiss-cpu", 1 / 3), Target("nvret", "matmul + topk", 1.0)],
            work=(2e-9 * len(few) * passages * dimension, "GFLOP"),
        ),
    ]


def unit(rows: int, dimension: int, seed: int) -> Tensor:
    """Random vectors of unit length; a search does the same work on them as on real ones."""
    vectors = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def _product(queries: Tensor, corpus: Tensor) -> Run:
    buffer = torch.empty(TILE, len(corpus))

    def run() -> None:
        for start in range(0, len(queries), TILE):
            rows = queries[start : start + TILE]
            torch.mm(rows, corpus.T, out=buffer[: len(rows)])

    return run


def _plain(queries: Tensor, corpus: Tensor, k: int) -> SearchResult:
    buffer = torch.empty(TILE, len(corpus))
    ids, scores = [], []
    for start in range(0, len(queries), TILE):
        rows = queries[start : start + TILE]
        best = torch.mm(rows, corpus.T, out=buffer[: len(rows)]).topk(k)
        ids.append(best.indices)
        scores.append(best.values)
    return SearchResult(torch.cat(ids), torch.cat(scores))


def _check(index: faiss.IndexFlatIP, queries: Tensor, corpus: Tensor) -> None:
    """The sides find the same: equal scores, and equal ids but where scores are as good as tied."""
    ours, plain = top_k(queries, corpus, 64), _plain(queries, corpus, 64)
    theirs, ids = index.search(queries.numpy(), 64)
    np.testing.assert_allclose(ours.scores, plain.scores, atol=2e-6)
    np.testing.assert_allclose(ours.scores, theirs, atol=2e-6)
    assert (ours.ids.numpy() == ids).mean() > 0.999
