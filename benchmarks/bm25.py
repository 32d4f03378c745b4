"""BM25 retrieval against bm25s and rank_bm25, on real passages and questions."""

from __future__ import annotations

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi

from benchmarks.harness import Case, Target, interleaved
from nvret import data
from nvret.bm25 import BM25, tokenize

TITLE = "BM25"
PACKAGES = ["torch", "scipy", "numba", "bm25s", "rank-bm25"]
SETS = ["nq", "squadshifts-new-wiki", "squadshifts-nyt", "squadshifts-reddit", "squadshifts-amazon"]
DEPTH = 64


def cases(smoke: bool) -> list[Case]:
    """Top-64 of each question, with an index and tokens that are there already."""
    sets = [data.load(name) for name in (SETS[:1] if smoke else SETS)]
    passages = [tokenize(text) for one in sets for text in one.passages]
    questions = [tokenize(text) for one in sets for text in one.query_texts]
    few = np.random.default_rng(0).permutation(len(questions))[: 64 if smoke else 2048]
    asked = [questions[row] for row in few]

    index, okapi = BM25(passages), BM25Okapi(passages)
    sides = {"nvret": lambda: index.top_k(asked, DEPTH)}
    others = {}
    for backend in ("numpy", "numba"):
        peer = others[f"bm25s, {backend}"] = bm25s.BM25(backend=backend)  # k1 1.5, b 0.75, as here
        peer.index(passages, show_progress=False)
        sides[f"bm25s, {backend}"] = lambda peer=peer: peer.retrieve(
            asked, k=DEPTH, show_progress=False, n_threads=2 if peer.backend == "numba" else 0
        )
    _check(index, okapi, asked[:32])
    rounds = 2 if smoke else 7
    size = f"{len(passages):,} passages"
    slow = asked[:16]
    one_by_one = interleaved(
        {
            "nvret": lambda: index.top_k(asked, DEPTH),
            "rank_bm25": lambda: [_first(okapi.get_scores(tokens)) for tokens in slow],
        },
        min(rounds, 3),
    )
    for side, count in (("nvret", len(asked)), ("rank_bm25", len(slow))):
        one_by_one[side] = [seconds / count for seconds in one_by_one[side]]
    return [
        Case(
            f"top-{DEPTH} of {size}",
            interleaved(sides, rounds),
            [Target("nvret", f"bm25s, {backend}", 1.0) for backend in ("numpy", "numba")],
            work=(len(asked), "questions"),
        ),
        Case(
            f"top-{DEPTH} of {size}, time of one question",
            one_by_one,
            [Target("nvret", "rank_bm25", 0.01)],
            work=(1, "question"),
            facts={"questions in a batch": {"nvret": len(asked), "rank_bm25": 1}},
        ),
    ]


def _first(scores: np.ndarray) -> np.ndarray:
    best = np.argpartition(-scores, DEPTH)[:DEPTH]
    return best[np.argsort(-scores[best])]


def _check(index: BM25, okapi: BM25Okapi, asked: list[list[str]]) -> None:
    """The scores of the questions' best passages are rank_bm25's."""
    found = index.top_k(asked, DEPTH)
    for tokens, scores in zip(asked, found.scores.numpy(), strict=True):
        held = scores > 0
        theirs = okapi.get_scores(tokens)
        np.testing.assert_allclose(scores[held], theirs[_first(theirs)][held], rtol=1e-4)
