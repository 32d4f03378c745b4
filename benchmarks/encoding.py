"""Encoding of NQ's passages against sentence-transformers' ``encode``."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from benchmarks.harness import Case, interleaved
from benchmarks.table import PEER
from nvret import assets, data
from nvret.encode import Encoder
from nvret.models.batching import WordTokens
from nvret.scale import int8

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def cases(smoke: bool) -> list[Case]:
    """A transformer and a static model; tokenization is part of the time on both sides."""
    passages = data.load("nq").passages
    order = np.random.default_rng(0).permutation(len(passages))
    shuffled = [passages[row] for row in order]
    return [
        _case("minilm-l6", shuffled[: 24 if smoke else 320], 256, smoke),
        _case("potion-base-8m", shuffled[: 24 if smoke else 7000], None, smoke),
        _rounded("minilm-l6", shuffled[: 24 if smoke else 1024], 64, smoke),
    ]


def anew(encoder: Encoder) -> Encoder:
    """It has seen no word yet, as at the beginning of a corpus."""
    encoder._words = WordTokens.of(encoder.tokenizer)
    return encoder


def _rounded(name: str, texts: list[str], length: int, smoke: bool) -> Case:
    """int8 and bfloat16 against float32 on both sides; what a corpus pays once stands apart."""
    path = assets.model_path(name)
    exact, half = Encoder.load(path), Encoder.load(path, dtype="bfloat16")
    theirs = SentenceTransformer(str(path), device="cpu", trust_remote_code=False)
    theirs.max_seq_length = length
    onnx = _fastembed(name, length) if find_spec("fastembed") else None
    rounded = int8.load(path)
    started = time.perf_counter()
    rounded.prepare(texts, max_length=length)
    preparing = time.perf_counter() - started
    options = {"max_length": length, "progress": False}
    sides = {
        "nvret, int8": lambda: anew(rounded).encode(texts, prepared=True, **options),
        "nvret, bfloat16": lambda: anew(half).encode(texts, **options),
        "nvret": lambda: anew(exact).encode(texts, **options),
        PEER: lambda: theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False),
    }
    reference = sides["nvret"]()
    if onnx is not None:
        sides["fastembed"] = lambda: np.stack(list(onnx.embed(texts, batch_size=64)))
        np.testing.assert_allclose(sides["fastembed"](), reference, atol=1e-4)
    cosines = {side: (sides[side]() * reference).sum(1).mean() for side in list(sides)[:2]}
    return Case(
        f"{name}, rounded",
        f"{name}, {len(texts):,} passages of NQ of at most {length} tokens",
        interleaved(sides, 2 if smoke else 3, warm_up=0 if smoke else 1),
        work=(len(texts), "passages"),
        facts={"seconds to prepare int8, once a corpus": round(preparing, 1)}
        | {f"mean cosine with float32, {side}": round(float(c), 5) for side, c in cosines.items()},
    )


class _Tokens(torch.nn.Module):
    """A BERT in the form that fastembed calls."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(
            path, attn_implementation="eager", trust_remote_code=False
        ).eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state


def _fastembed(name: str, length: int) -> Any:
    """The same weights in fastembed, on onnxruntime: it is asked where somebody installed it."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    path, folder = assets.model_path(name), Path(tempfile.mkdtemp())
    one = torch.ones(2, 7, dtype=torch.long)
    torch.onnx.export(
        _Tokens(path), (one, one, one * 0), folder / "model.onnx", input_names=INPUTS,
        dynamic_axes={each: {0: "texts", 1: "tokens"} for each in INPUTS}, dynamo=False,
    )  # fmt: skip
    for file in path.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": length, "max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    TextEmbedding.add_custom_model(
        model=name, pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(url="-"),
        dim=Encoder.load(path).dimension, model_file="model.onnx",
    )  # fmt: skip
    return TextEmbedding(name, specific_model_path=str(folder), threads=torch.get_num_threads())


def _case(name: str, texts: list[str], length: int | None, smoke: bool) -> Case:
    ours = Encoder.load(assets.model_path(name))
    theirs = SentenceTransformer(
        str(assets.model_path(name)), device="cpu", trust_remote_code=False
    )
    if length:
        theirs.max_seq_length = length
    sides = {
        "nvret": lambda: anew(ours).encode(texts, max_length=length, progress=False),
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
