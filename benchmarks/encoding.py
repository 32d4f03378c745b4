"""Encoding of NQ's passages against sentence-transformers' ``encode``."""

from __future__ import annotations

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.harness import Case, Target, interleaved
from nvret import assets, data
from nvret.encode import Encoder

TITLE = "Encoding"
PACKAGES = ["torch", "transformers", "tokenizers", "sentence-transformers"]


def cases(smoke: bool) -> list[Case]:
    """A transformer and a static model; tokenization is part of the time on both sides."""
    passages = data.load("nq").passages
    order = np.random.default_rng(0).permutation(len(passages))
    found = []
    for name, size, length, target in (
        ("minilm-l6", 512, 256, 1 / 1.3),
        ("potion-base-8m", 7000, None, 1.0),
    ):
        texts = [passages[row] for row in order[: 24 if smoke else size]]
        ours = Encoder.load(assets.model_path(name))
        theirs = SentenceTransformer(str(assets.model_path(name)), device="cpu")
        if length:
            theirs.max_seq_length = length
        sides = {
            "nvret": lambda ours=ours, texts=texts, length=length: ours.encode(
                texts, max_length=length, progress=False
            ),
            "sentence-transformers": lambda theirs=theirs, texts=texts: theirs.encode(
                texts, normalize_embeddings=True, show_progress_bar=False
            ),
        }
        np.testing.assert_allclose(*(run() for run in sides.values()), atol=1e-5)
        tokens = ours.tokenize(texts, max_length=length, progress=False).lengths
        found.append(
            Case(
                f"{name}, {len(texts):,} passages of NQ",
                interleaved(sides, 2 if smoke else 5, warm_up=0 if smoke else 1),
                [Target("nvret", "sentence-transformers", target)],
                work=(len(texts), "passages"),
                facts={"mean tokens": round(float(tokens.mean()), 1), "most tokens": length},
            )
        )
    return found
