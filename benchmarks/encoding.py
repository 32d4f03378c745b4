"""Encoding of NQ's passages against sentence-transformers' ``encode``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sentence_transformers import SentenceTransformer

from benchmarks.harness import Case, interleaved
from benchmarks.table import PEER
from nvret import assets, data, evaluation, methods, mining, teachers
from nvret.analysis import statistics
from nvret.data import RetrievalDataset
from nvret.encode import Encoder
from nvret.scale import int8
from nvret.training import head
from nvret.training.config import TrainingConfig


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
        interleaved(sides, 2 if smoke else 5, warm_up=0 if smoke else 1),
        work=(len(texts), "passages"),
        facts={"seconds to prepare int8, once a corpus": round(preparing, 1)}
        | {f"mean cosine with float32, {side}": round(float(c), 5) for side, c in cosines.items()}
        | ({} if smoke else _agreement(name, path, length)),
    )


def _agreement(name: str, path: Path, length: int) -> dict[str, Any]:
    """What rounded passages change: of NQ's pairs the share whose four negatives are those of
    float32 passages, and the NDCG@10 of students (a head on the float32 model)."""
    dataset, rules = data.load("nq"), [methods.NaiveTopK(), methods.TopKPercPos(0.95)]
    encoders = {"float32": Encoder.load(path), "bfloat16": Encoder.load(path, dtype="bfloat16")}
    encoders["int8"] = int8.load(path)
    queries = encoders["float32"].encode(dataset.query_texts, "query", progress=False)
    exclude = mining.exclusions(dataset, None)
    mined, exact = {}, np.empty(0)
    for precision, encoder in encoders.items():
        passages = encoder.encode(dataset.passages, max_length=length, progress=False)
        exact = exact if len(exact) else passages
        scorer = teachers.dense_scorer(name, [precision], queries, passages)
        mined[precision] = mining.sweep(
            dataset, scorer, rules, 4, near_duplicates=None, exclude=exclude, progress=False
        )
    facts = {}
    for place, rule in enumerate(rules):
        chosen = {precision: tables[place] for precision, tables in mined.items()}
        scores = {p: students(dataset, table, queries, exact) for p, table in chosen.items()}
        for precision in ("bfloat16", "int8"):
            pairs = zip(_sets(chosen["float32"]), _sets(chosen[precision]), strict=True)
            share = round(float(np.mean([a == b for a, b in pairs])), 3)
            interval = points(scores[precision] - scores["float32"])
            facts[f"share of pairs with the same negatives, {precision}, {rule}"] = share
            facts[f"points of a student's NDCG@10 from float32's, {precision}, {rule}"] = interval
    return facts


def points(differences: np.ndarray) -> str:
    """The mean of (seeds, questions) differences of NDCG in points, with its interval."""
    value, low, high = (100 * part for part in statistics.mean_interval(differences))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def students(
    dataset: RetrievalDataset, table: pa.Table, queries: np.ndarray, passages: np.ndarray
) -> np.ndarray:
    """NDCG@10 of heads of five seeds on a thousand held-out questions: (seeds, questions)."""
    order = np.random.default_rng(0).permutation(len(queries))
    held, own = np.sort(order[:1000]), np.sort(order[1000:])
    ids = dataset.queries["id"]
    train, test = (dataset.select(ids.take(pa.array(rows)).to_pylist()) for rows in (own, held))
    table = table.filter(pc.is_in(table["query_id"], train.queries["id"].combine_chunks()))
    config = TrainingConfig(batch_size=128, learning_rate=3e-4, temperature=0.05, weight_decay=0)
    scores = []
    for seed in range(5):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "head"
            head.train_head(
                train, table, queries[own], passages, output, config, seed=seed, progress=False
            )
            vectors = (head.apply(output, some) for some in (queries[held], passages))
            scorer = teachers.dense_scorer("head", [seed], *vectors)
        found = scorer.top_k(np.arange(len(held)), 10)
        ranking = found.ids.numpy(), found.scores.numpy()
        scores.append(evaluation.evaluate_ranking(*ranking, test, k=[10]).values("ndcg_at_10"))
    return np.stack(scores)


def _sets(table: pa.Table) -> list[set[str]]:
    rows = table.select(["query_id", "positive_id", "negative_id"]).to_pandas()
    return list(rows.groupby(["query_id", "positive_id"])["negative_id"].agg(set))


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
        facts={"mean tokens": round(float(tokens.mean()), 1)},
    )
