"""Exact top-k search against the bare matrix product, plain ``topk`` and faiss."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, interleaved
from nvret.cost.calibration import Run
from nvret.scale import screen
from nvret.search import SearchResult, top_k

TILE = 256  # queries a product, on every side


def cases(smoke: bool) -> list[Case]:
    """Top-64 without and with a ceiling, at two widths."""
    passages, queries, rounds = (9_000, 300, 2) if smoke else (200_000, 2_048, 4)
    return [case for dimension in (384, 768)
            for case in _cases(passages, queries, dimension, rounds)]  # fmt: skip


def _cases(passages: int, queries: int, dimension: int, rounds: int) -> Iterator[Case]:
    corpus, asked = unit(passages, dimension, 0), unit(queries, dimension, 1)
    index = faiss.IndexFlatIP(dimension)
    index.add(corpus.numpy())
    few = asked[: queries // 4]  # faiss is slow, and a quarter says as much
    _check(index, few, corpus)

    # A ceiling that cuts off the best 32 of each query, and 8 ids to leave out below it
    best = top_k(asked, corpus, 41)
    below = {"ceiling": best.scores[:, 32], "exclude": list(best.ids[:, 33:].numpy())}
    name = f"of {passages:,} × {dimension}"
    work = (2e-9 * queries * passages * dimension, "GFLOP")
    sides = {
        "product": _product(asked, corpus),
        "nvret": lambda: top_k(asked, corpus, 64),
        "nvret, ceiling": lambda: top_k(asked, corpus, 64, **below),
        "nvret, screen": lambda: screen.top_k(asked, corpus, 64),
        "nvret, screen, ceiling": lambda: screen.top_k(asked, corpus, 64, **below),
    }
    seconds = interleaved(sides, rounds)
    yield Case(f"{dimension}", f"top-64 {name}", seconds, work=work)
    limited = f"top-64 below a ceiling, 8 ids excluded, {name}"
    yield Case(f"{dimension}, ceiling", limited, seconds, work=work)
    facts = {"the screen is": "used" if screen.is_fast("cpu") else "not used on this processor"}
    for way, what in (("screen", "top-64"), ("screen, ceiling", "top-64 below a ceiling")):
        title = f"{what}, behind a screen in bfloat16, {name}"
        yield Case(f"{dimension}, {way}", title, seconds, work=work, facts=facts)
    others = {
        "nvret": lambda: top_k(few, corpus, 64),
        "matmul + topk": lambda: _plain(few, corpus, 64),
        "faiss-cpu": lambda: index.search(few.numpy(), 64),
    }
    yield Case(
        f"{dimension}, others",
        f"top-64 {name}, against others",
        interleaved(others, rounds - 1),
        work=(2e-9 * len(few) * passages * dimension, "GFLOP"),
    )


def unit(rows: int, dimension: int, seed: int) -> Tensor:
    """Random vectors of unit length; a search does the same work on them as on real ones."""
    vectors = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def _product(queries: Tensor, corpus: Tensor) -> Run:
    buffer = torch.empty(TILE, len(corpus))

    def run() -> None:
        for rows in queries.split(TILE):
            torch.mm(rows, corpus.T, out=buffer[: len(rows)])

    return run


def _plain(queries: Tensor, corpus: Tensor, k: int) -> SearchResult:
    buffer = torch.empty(TILE, len(corpus))
    parts = [torch.mm(rows, corpus.T, out=buffer[: len(rows)]).topk(k)
             for rows in queries.split(TILE)]  # fmt: skip
    return SearchResult(*(torch.cat([part[i] for part in parts]) for i in (1, 0)))


def _check(index: faiss.IndexFlatIP, queries: Tensor, corpus: Tensor) -> None:
    """The sides find the same: equal scores, and equal ids but where scores are as good as tied."""
    ours, plain = top_k(queries, corpus, 64), _plain(queries, corpus, 64)
    theirs, ids = index.search(queries.numpy(), 64)
    np.testing.assert_allclose(ours.scores, plain.scores, atol=2e-6)
    np.testing.assert_allclose(ours.scores, theirs, atol=2e-6)
    screened = screen.top_k(queries, corpus, 64)
    assert (screened.ids == ours.ids).double().mean() > 0.999
    assert (ours.ids.numpy() == ids).mean() > 0.999
