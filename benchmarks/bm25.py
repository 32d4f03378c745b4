"""BM25 retrieval against bm25s and rank_bm25, on real passages and questions."""

from __future__ import annotations

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi

from benchmarks.harness import Case, interleaved
from nvret import data
from nvret.bm25 import BM25, tokenize

SETS = ["nq", "squadshifts-new-wiki", "squadshifts-nyt", "squadshifts-reddit", "squadshifts-amazon"]
DEPTH = 64


def cases(smoke: bool) -> list[Case]:
    """Top-64 of each question, with an index and tokens that are there already."""
    sets = [data.load(name) for name in (SETS[:1] if smoke else SETS)]
    passages = [tokenize(text) for each in sets for text in each.passages]
    questions = [tokenize(text) for each in sets for text in each.query_texts]
    few = np.random.default_rng(0).permutation(len(questions))[: 64 if smoke else 2048]
    asked = [questions[row] for row in few]

    index, okapi = BM25(passages), BM25Okapi(passages)
    _check(index, okapi, asked[:32])
    sides = {"nvret": lambda: index.top_k(asked, DEPTH)}
    for backend in ("numpy", "numba"):
        peer = bm25s.BM25(backend=backend)  # k1 1.5, b 0.75, as here
        peer.index(passages, show_progress=False)
        sides[f"bm25s, {backend}"] = lambda peer=peer: peer.retrieve(
            asked, k=DEPTH, show_progress=False, n_threads=2 if peer.backend == "numba" else 0
        )
    slow = asked[:16]
    by_question = {
        "nvret": sides["nvret"],
        "rank_bm25": lambda: [_best(okapi.get_scores(tokens)) for tokens in slow],
    }
    rounds = 2 if smoke else 5
    each = interleaved(by_question, min(rounds, 3))
    counts = {"nvret": len(asked), "rank_bm25": len(slow)}
    name = f"top-{DEPTH} of {len(passages):,} passages"
    return [
        Case("batch", name, interleaved(sides, rounds), work=(len(asked), "questions")),
        Case(
            "one",
            f"{name}, time of one question",
            {side: [taken / counts[side] for taken in seconds] for side, seconds in each.items()},
            work=(1, "question"),
            facts={"questions in a batch": {"nvret": len(asked), "rank_bm25": 1}},
        ),
    ]


def _best(scores: np.ndarray) -> np.ndarray:
    best = np.argpartition(-scores, DEPTH)[:DEPTH]
    return best[np.argsort(-scores[best])]


def _check(index: BM25, okapi: BM25Okapi, asked: list[list[str]]) -> None:
    """The scores of the questions' best passages are rank_bm25's."""
    ours = index.top_k(asked, DEPTH).scores.numpy()
    for tokens, scores in zip(asked, ours, strict=True):
        theirs = okapi.get_scores(tokens)
        matching = scores > 0
        np.testing.assert_allclose(scores[matching], theirs[_best(theirs)][matching], rtol=1e-4)
