"""Mining after encoding, against sentence-transformers' ``mine_hard_negatives``.

The vectors are there before the clock starts, so that what is timed is the search, the rule
(TopK-PercPos at 95 %, theirs named ``relative_margin=0.05``), the exclusion of the positives and
the table of negatives. Both read the same texts with the same static encoder.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from benchmarks.harness import Case, Target, interleaved
from nvret import assets, data, mining, negatives, teachers
from nvret.cost.calibration import extra_memory
from nvret.data import RetrievalDataset, from_texts

TITLE = "Mining after encoding"
PACKAGES = ["torch", "pyarrow", "sentence-transformers", "datasets"]
MODEL = "potion-base-8m"
SETS = ["nq", "squad-dev", "squadshifts-new-wiki", "squadshifts-nyt", "squadshifts-reddit"]
NUM = 10
PERC = 0.95


def cases(smoke: bool) -> list[Case]:
    """Time, extra memory in a fresh process for each side, and the assembly alone."""
    size = (300, 2_000) if smoke else (10_000, 100_000)
    dataset = corpus_of(*size)
    with ours(dataset) as mine, theirs(dataset) as peer:
        same = _agreement(dataset, mine(), peer())
        seconds = interleaved({"nvret": mine, "sentence-transformers": peer}, 2 if smoke else 3)
    mebibytes = {
        "nvret": _in_fresh_process(_memory_of, "nvret", size),
        "sentence-transformers": _in_fresh_process(_memory_of, "sentence-transformers", size),
    }
    name = f"{NUM} negatives for {size[0]:,} questions from {size[1]:,} passages"
    return [
        Case(
            name,
            seconds,
            [
                Target("nvret", "sentence-transformers", 1 / 5),
                Target("nvret", "sentence-transformers", 1 / 5, "mebibytes"),
            ],
            mebibytes,
            work=(size[0] * NUM, "negatives"),
            facts={"share of their pairs with the same negatives": round(same, 4)},
        ),
        _assembly(dataset),
    ]


def corpus_of(queries: int, passages: int) -> RetrievalDataset:
    """Real questions and passages; the corpus is filled up with parts of passages."""
    sets = [data.load(name) for name in SETS]
    asked = [(one, query) for one in sets for query in range(len(one.query_texts))]
    order = np.random.default_rng(0).permutation(len(asked))
    texts: dict[str, int] = {}
    questions: dict[str, list[int]] = {}
    for row in order:
        one, query = asked[row]
        text = one.query_texts[query]
        if len(questions) < queries and text not in questions:
            positive = one.passages[one.positives[query][0]]
            questions[text] = [texts.setdefault(positive, len(texts))]
    whole = [text for one in sets for text in one.passages]
    for step in range(2, 40):  # the first words of each passage, fewer and fewer
        for text in whole:
            if len(texts) == passages:
                break
            words = text.split()
            texts.setdefault(" ".join(words[: len(words) * 2 // (step + 1)]) or text, len(texts))
    return from_texts("benchmark", list(texts), list(questions), list(questions.values()))


@contextlib.contextmanager
def ours(dataset: RetrievalDataset) -> Iterator[Callable[[], pa.Table]]:
    """A call that mines with vectors that are there already."""
    teacher = teachers.DenseTeacher(MODEL, query_max_length=512, passage_max_length=512)
    scorer = teacher.prepare(dataset, progress=False)

    def run() -> pa.Table:
        # Near-duplicates are left to the other comparison: the peer does not look for them
        return mining.mine(
            dataset,
            scorer,
            mining.TopKPercPos(PERC),
            NUM,
            near_duplicates=None,
            progress=False,
        )

    yield run


@contextlib.contextmanager
def theirs(dataset: RetrievalDataset) -> Iterator[Callable[[], Dataset]]:
    """A call that mines; it reads the vectors from its cache."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    model = SentenceTransformer(str(assets.model_path(MODEL)), device="cpu")
    rows, positives = dataset.pairs
    pairs = Dataset.from_dict(
        {
            "query": [dataset.query_texts[row] for row in rows],
            "positive": [dataset.passages[row] for row in positives],
        }
    )
    with tempfile.TemporaryDirectory() as cache:

        def run() -> Dataset:
            return mine_hard_negatives(
                pairs,
                model,
                corpus=dataset.passages,
                relative_margin=1 - PERC,
                num_negatives=NUM,
                output_format="n-tuple",
                cache_folder=cache,
                verbose=False,
            )

        run()
        yield run


def _agreement(dataset: RetrievalDataset, table: pa.Table, tuples: Dataset) -> float:
    """Of the pairs that the peer keeps, the share for which both found the same negatives."""
    names = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))
    found: dict[str, list[str]] = {}
    asked = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
    for query, negative in zip(
        *(table[c].to_pylist() for c in ("query_id", "negative_id")), strict=True
    ):
        found.setdefault(asked[query], []).append(names[negative])
    columns = [tuples[f"negative_{number}"] for number in range(1, NUM + 1)]
    same = [
        set(found.get(query, ())) == set(row)
        for query, *row in zip(tuples["query"], *columns, strict=True)
    ]
    assert np.mean(same) > 0.95, np.mean(same)
    return float(np.mean(same))


def _memory_of(side: str, size: tuple[int, int]) -> float:
    dataset = corpus_of(*size)
    _ = dataset.query_texts, dataset.passages, dataset.positives
    with (ours if side == "nvret" else theirs)(corpus_of(300, 2_000)) as run:
        run()  # libraries and threads start with a small one
    with (ours if side == "nvret" else theirs)(dataset) as run:
        return extra_memory(run, torch.device("cpu"))


def _in_fresh_process(work: Callable[..., float], *arguments: object) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *arguments).result()


def _assembly(dataset: RetrievalDataset) -> Case:
    """The table of negatives alone, against a microsecond for each."""
    teacher = teachers.DenseTeacher(MODEL, query_max_length=512, passage_max_length=512)
    scorer = teacher.prepare(dataset, progress=False)
    rows, positives = dataset.pairs
    banned = [dataset.positives[row] for row in rows]
    limit = mining.TopKPercPos(PERC)
    scores = scorer.pair_scores(rows, positives)
    found = mining.rank(
        scorer, rows, [limit], [limit.ceiling(scores)], NUM, banned, progress=False
    )[0]
    ranks = np.broadcast_to(np.arange(1, NUM + 1), found.ids.shape)
    columns = {
        "query_id": dataset.queries["id"].take(pa.array(rows)),
        "positive_id": dataset.corpus["id"].take(pa.array(positives)),
        "positive_score": scores,
        "teacher": scorer.name,
        "method": str(limit),
    }

    def assemble() -> None:
        negatives.assemble(dataset, columns, found.ids, ranks, found.scores)

    count = int((found.ids >= 0).sum())
    seconds = interleaved({"assembly": assemble}, 15)
    seconds["1 µs a negative"] = [1e-6 * count] * 15
    return Case(
        f"assembly of {count:,} negatives",
        seconds,
        [Target("assembly", "1 µs a negative", 1.0)],
        work=(count, "negatives"),
    )
