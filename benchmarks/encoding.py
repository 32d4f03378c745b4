"""Encoding of NQ's passages against sentence-transformers' ``encode``."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.harness import Case, interleaved
from benchmarks.table import PEER
from nvret import assets, data
from nvret.encode import Encoder


def cases(smoke: bool) -> list[Case]:
    """A transformer and a static model; tokenization is part of the time on both sides."""
    passages = data.load("nq").passages
    order = np.random.default_rng(0).permutation(len(passages))
    shuffled = [passages[row] for row in order]
    return [
        _case("minilm-l6", shuffled[: 24 if smoke else 512], 256, smoke),
        _case("potion-base-8m", shuffled[: 24 if smoke else 7000], None, smoke),
    ]


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
        interleaved(sides, 2 if smoke else 5, warm_up=0 if smoke else 1),
        work=(len(texts), "passages"),
        facts={"mean tokens": round(float(tokens.mean()), 1), "most tokens": length},
    )
