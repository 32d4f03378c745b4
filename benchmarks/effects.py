"""What a faster way costs: other negatives, and points of a student's NDCG@10.

No time is taken, so that the answer does not depend on the machine, and ``make bench`` leaves it
out. Differences are of the same questions and seeds, with the 95 % interval over both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.harness import Case
from nvret import assets, data, evaluation, methods, mining, teachers
from nvret.analysis import statistics
from nvret.data import RetrievalDataset
from nvret.encode import Encoder
from nvret.scale import int8
from nvret.training import finetune, head
from nvret.training.config import TrainingConfig

MODEL, LENGTH = "minilm-l6", 64
RULES = methods.NaiveTopK(), methods.TopKPercPos(0.95)


def cases(smoke: bool) -> list[Case]:
    """Rounded passages, negatives that copy none other, frozen layers; on NQ."""
    dataset = data.load("nq", progress=False)
    questions = np.random.default_rng(0).permutation(dataset.queries["id"].to_pylist())
    if smoke:
        answers = dataset.select(questions[:60].tolist())
        corpus = answers.qrels["corpus_id"].to_pylist() + dataset.corpus["id"].to_pylist()[:200]
        dataset = answers.select(questions[:60].tolist(), corpus_ids=list(dict.fromkeys(corpus)))
    number, seeds = (20, 2) if smoke else (1000, 5)
    queries = Encoder.load(assets.model_path(MODEL)).encode(
        dataset.query_texts, "query", progress=False
    )
    return [
        Case("rounded", f"{MODEL}'s passages, rounded, for NQ", {},
             facts=_rounded(dataset, queries, number, seeds)),
        Case("distinct", "negatives of NQ that copy none other (--distinct)", {},
             facts=_distinct(dataset, number, seeds)),
        Case("frozen", "paraphrase-minilm-l3, 2 of its 3 layers frozen, a thousand pairs of NQ", {},
             facts=_frozen(dataset, questions, number, min(seeds, 2))),
    ]  # fmt: skip


def _rounded(
    dataset: RetrievalDataset, queries: np.ndarray, held: int, seeds: int
) -> dict[str, Any]:
    """The share of pairs whose four negatives are those of float32 passages, and students (heads
    on the float32 model)."""
    path = assets.model_path(MODEL)
    encoders = {"float32": Encoder.load(path), "bfloat16": Encoder.load(path, dtype="bfloat16")}
    encoders["int8"] = int8.load(path)
    exclude, passages, mined = mining.exclusions(dataset, None), {}, {}
    for precision, encoder in encoders.items():
        vectors = encoder.encode(dataset.passages, max_length=LENGTH, progress=False)
        scorer = teachers.dense_scorer(MODEL, [precision], queries, vectors)
        passages[precision], mined[precision] = (
            vectors,
            mining.sweep(
                dataset, scorer, RULES, 4, near_duplicates=None, exclude=exclude, progress=False
            ),
        )
    facts = {}
    for rule, *tables in zip(RULES, *mined.values(), strict=True):
        chosen = dict(zip(mined, tables, strict=True))
        scores = {precision: students(dataset, table, queries, passages["float32"], held, seeds)
                  for precision, table in chosen.items()}  # fmt: skip
        for precision in ("bfloat16", "int8"):
            pairs = zip(_sets(chosen["float32"]), _sets(chosen[precision]), strict=True)
            share = round(float(np.mean([a == b for a, b in pairs])), 3)
            interval = points(scores[precision] - scores["float32"])
            facts[f"share of pairs with the same negatives, {precision}, {rule}"] = share
            facts[f"points of a student's NDCG@10 from float32's, {precision}, {rule}"] = interval
    return facts


def _distinct(dataset: RetrievalDataset, held: int, seeds: int) -> dict[str, str]:
    """How many negatives change where copies are passed over, and students."""
    scorer = teachers.DenseTeacher(MODEL, passage_max_length=LENGTH).prepare(
        dataset, progress=False
    )
    exclude, facts = mining.exclusions(dataset), {}
    for rule in RULES:
        tables = [
            mining.mine(
                dataset, scorer, rule, 4, distinct=threshold, exclude=exclude, progress=False
            )
            for threshold in (None, 0.8)
        ]
        columns = ["query_id", "positive_id", "negative_id"]
        keys = [set(map(tuple, table.select(columns).to_pandas().to_numpy())) for table in tables]
        plain, other = (
            students(dataset, table, scorer.queries, scorer.corpus, held, seeds) for table in tables
        )
        share = len(keys[0] - keys[1]) / len(keys[0])
        facts[f"{rule}: negatives that copies give way to"] = f"{share:.1%}"
        facts[f"{rule}: points of a student's NDCG@10"] = points(other - plain)
    return facts


def _frozen(
    dataset: RetrievalDataset, questions: np.ndarray, held: int, seeds: int
) -> dict[str, str]:
    """A transformer after one epoch: on held-out questions, in 3,000 passages."""
    train, test = (
        dataset.select(some.tolist()) for some in (questions[:held], questions[held : 2 * held])
    )
    passages = test.qrels["corpus_id"].to_pylist() + test.corpus["id"].to_pylist()
    corpus = list(dict.fromkeys(passages))[:3000]  # all that answer a question, and others
    test = test.select(test.queries["id"].to_pylist(), corpus_ids=corpus)
    table = mining.mine(train, "potion-base-8m", RULES[1], 4, progress=False)
    config = TrainingConfig(
        batch_size=32,
        learning_rate=5e-5,
        temperature=0.05,
        in_batch_negatives=False,
        passage_max_length=LENGTH,
        checkpoint_steps=0,
    )
    base = assets.model_path("paraphrase-minilm-l3")

    def ndcg(model: Path) -> np.ndarray:
        encoder = Encoder.load(model)
        (scores,) = evaluation.evaluate_all(encoder, [test], 32, LENGTH, progress=False)
        return scores.values("ndcg_at_10")

    scores = {0: [], 2: []}
    for seed in range(seeds):
        for layers in scores:
            settings = config.model_copy(update={"freeze_layers": layers})
            with tempfile.TemporaryDirectory() as folder:
                trained = Path(folder) / "trained"
                finetune(base, train, table, trained, settings, seed=seed, progress=False)
                scores[layers].append(ndcg(trained))
    whole, frozen = map(np.stack, scores.values())
    return {
        "points of NDCG@10 that training adds": points(whole - ndcg(base)),
        "points that the frozen layers cost": points(frozen - whole),
    }


def points(differences: np.ndarray) -> str:
    """The mean of (seeds, questions) differences of NDCG in points, with its interval."""
    value, low, high = (100 * part for part in statistics.mean_interval(differences))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def students(
    dataset: RetrievalDataset,
    table: pa.Table,
    queries: np.ndarray,
    passages: np.ndarray,
    held: int,
    seeds: int,
) -> np.ndarray:
    """NDCG@10 of heads on so many held-out questions: (seeds, held)."""
    order = np.random.default_rng(0).permutation(len(queries))
    chosen, own = np.sort(order[:held]), np.sort(order[held:])
    ids = dataset.queries["id"]
    train, test = (dataset.select(ids.take(pa.array(rows)).to_pylist()) for rows in (own, chosen))
    table = table.filter(pc.is_in(table["query_id"], train.queries["id"].combine_chunks()))
    config = TrainingConfig(batch_size=128, learning_rate=3e-4, temperature=0.05, weight_decay=0)
    scores = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "head"
            head.train_head(
                train, table, queries[own], passages, output, config, seed=seed, progress=False
            )
            vectors = (head.apply(output, some) for some in (queries[chosen], passages))
            scorer = teachers.dense_scorer("head", [seed], *vectors)
        found = scorer.top_k(np.arange(held), 10)
        ranking = found.ids.numpy(), found.scores.numpy()
        scores.append(evaluation.evaluate_ranking(*ranking, test, k=[10]).values("ndcg_at_10"))
    return np.stack(scores)


def _sets(table: pa.Table) -> list[set[str]]:
    rows = table.select(["query_id", "positive_id", "negative_id"]).to_pandas()
    return list(rows.groupby(["query_id", "positive_id"])["negative_id"].agg(set))
