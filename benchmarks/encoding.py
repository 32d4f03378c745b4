"""Encoding of NQ's passages against sentence-transformers' ``encode``."""

from __future__ import annotations

import time

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.harness import Case, interleaved
from benchmarks.table import PEER
from nvret import assets, data
from nvret.encode import Encoder
from nvret.scale import int8


def cases(smoke: bool) -> list[Case]:
    """A transformer and a static model; tokenization is part of the time on both sides."""
    passages = data.load("nq").passages
    order = np.random.default_rng(0).permutation(len(passages))
    shuffled = [passages[row] for row in order]
    return [
        _case("minilm-l6", shuffled[: 24 if smoke else 512], 256, smoke),
        _case("potion-base-8m", shuffled[: 24 if smoke else 7000], None, smoke),
        _rounded("minilm-l6", shuffled[: 24 if smoke else 1024], 64, smoke),
    ]


def _rounded(name: str, texts: list[str], length: int, smoke: bool) -> Case:
    """int8 and bfloat16 against float32 on both sides; what a corpus pays once stands apart."""
    path = assets.model_path(name)
    exact, half = Encoder.load(path), Encoder.load(path, dtype="bfloat16")
    theirs = SentenceTransformer(str(path), device="cpu", trust_remote_code=False)
    theirs.max_seq_length = length
    rounded = int8.load(path)
    started = time.perf_counter()
    rounded.prepare(texts, max_length=length)
    preparing = time.perf_counter() - started
    options = {"max_length": length, "progress": False}
    sides = {
        "nvret, int8": lambda: rounded.encode(texts, prepared=True, **options),
        "nvret, bfloat16": lambda: half.encode(texts, **options),
        "nvret": lambda: exact.encode(texts, **options),
        PEER: lambda: theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False),
    }
    reference = sides["nvret"]()
    cosines = {side: (sides[side]() * reference).sum(1).mean() for side in list(sides)[:2]}
    return Case(
        f"{name}, rounded",
        f"{name}, {len(texts):,} passages of NQ of at most {length} tokens",
        interleaved(sides, 2 if smoke else 3, warm_up=0 if smoke else 1),
        work=(len(texts), "passages"),
        facts={"seconds to prepare int8, once a corpus": round(preparing, 1)}
        | {f"mean cosine with float32, {side}": round(float(c), 5) for side, c in cosines.items()},
    )


def _case(name: str, texts: list[str], length: int | None, smoke: bool) -> Case:
    ours = Encoder.load(assets.model_path(name))
    theirs = SentenceTransformer(
        str(assets.model_path(name)), device="cpu", trust_remote_code=False
    )
    if length:
        theirs.max_seq_length = length
    sides = {
        "nvret": lambda: ours.encode(texts, max_length=length, progress=False),
        PEER: lambda: theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False),
    }
    np.testing.assert_allclose(*(run() for run in sides.values()), atol=1e-5)
    tokens = ours.tokenize(texts, max_length=length, progress=False).lengths
    return Case(
        name,
        f"{name}, {len(texts):,} passages of NQ",
        interleaved(sides, 2 if smoke else 3, warm_up=0 if smoke else 1),
        work=(len(texts), "passages"),
        facts={"mean tokens": round(float(tokens.mean()), 1)},
    )
