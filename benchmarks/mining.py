"""Mining after encoding, against sentence-transformers' ``mine_hard_negatives``.

The vectors are there before the clock starts, so that what is timed is the search, the rule
(TopK-PercPos at 95 %, theirs named ``relative_margin=0.05``), the exclusion of the positives and
the table of negatives. Both read the same texts with the same static encoder.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from benchmarks.harness import Case, interleaved
from benchmarks.table import FEW_AT_ONCE, PEER
from nvret import assets, data, mining, negatives, teachers
from nvret.cost.calibration import Run, extra_memory
from nvret.data import RetrievalDataset, from_texts
from nvret.utils import machine, near_duplicates

MODEL = "potion-base-8m"
SETS = ["nq", "squad-dev", "squadshifts-new-wiki", "squadshifts-nyt", "squadshifts-reddit"]
WHOLE = ["nvret", PEER, FEW_AT_ONCE]
NUM = 10
PERC = 0.95


def cases(smoke: bool) -> list[Case]:
    """Time, extra memory in a fresh process for each side, and the assembly alone."""
    size = (300, 2_000) if smoke else (10_000, 100_000)
    dataset = corpus_of(*size)
    with tempfile.TemporaryDirectory() as cache:
        sides = {"nvret": ours(dataset), PEER: theirs(dataset, cache)}
        share = _agreement(dataset, *(run() for run in sides.values()))
        sides[FEW_AT_ONCE] = theirs(dataset, cache, faiss_batch_size=256)
        seconds = interleaved(sides, 2 if smoke else 3)
    fresh = multiprocessing.get_context("spawn")
    mebibytes = {}
    for side in sides:
        with ProcessPoolExecutor(1, fresh) as pool:
            mebibytes[side] = pool.submit(_memory_of, side, size).result()
    return [
        Case(
            "mine",
            f"{NUM} negatives for {size[0]:,} questions from {size[1]:,} passages",
            seconds,
            mebibytes,
            work=(size[0] * NUM, "negatives"),
            facts={"share of their pairs with the same negatives": round(share, 4)},
        ),
        _assembly(dataset),
        _whole(*((300, 2_000) if smoke else (10_000, 57_000)), 1 if smoke else 2),
    ]


def corpus_of(queries: int, passages: int) -> RetrievalDataset:
    """Real questions and passages; the corpus is filled up with parts of passages."""
    sets = [data.load(name) for name in SETS]
    asked = [(each, row) for each in sets for row in range(len(each.query_texts))]
    texts: dict[str, int] = {}
    questions: dict[str, list[int]] = {}
    for place in np.random.default_rng(0).permutation(len(asked)):
        each, row = asked[place]
        text = each.query_texts[row]
        if len(questions) < queries and text not in questions:
            positive = each.passages[each.positives[row][0]]
            questions[text] = [texts.setdefault(positive, len(texts))]
    whole = [text for each in sets for text in each.passages]
    for step in range(2, 40):  # the first words of each passage, fewer and fewer
        for text in whole:
            if len(texts) == passages:
                break
            words = text.split()
            texts.setdefault(" ".join(words[: len(words) * 2 // (step + 1)]) or text, len(texts))
    return from_texts("benchmark", list(texts), list(questions), list(questions.values()))


def ours(dataset: RetrievalDataset) -> Run:
    """Mines with vectors that are there already.

    Near-duplicates are left to the other comparison: the peer does not look for them.
    """
    scorer, rule = _scorer(dataset), mining.TopKPercPos(PERC)
    return lambda: mining.mine(dataset, scorer, rule, NUM, near_duplicates=None, progress=False)


def theirs(dataset: RetrievalDataset, cache: str, **options: int) -> Run:
    """Mines with the vectors that its first run has left in the folder.

    It scores 16,384 questions at once by default, so that all scores are in memory.
    """
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    model = SentenceTransformer(
        str(assets.model_path(MODEL)), device="cpu", trust_remote_code=False
    )
    rows, positives = dataset.pairs
    pairs = Dataset.from_dict(
        {
            "query": [dataset.query_texts[row] for row in rows],
            "positive": [dataset.passages[row] for row in positives],
        }
    )

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
            **options,
        )

    run()
    return run


def _scorer(dataset: RetrievalDataset) -> teachers.Scorer:
    teacher = teachers.DenseTeacher(MODEL, query_max_length=512, passage_max_length=512)
    return teacher.prepare(dataset, progress=False)


def _agreement(dataset: RetrievalDataset, table: pa.Table, tuples: Dataset) -> float:
    """Of the pairs that the peer keeps, the share for which both found the same negatives."""
    passages = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))
    questions = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
    mined = defaultdict(set)
    for row in table.select(["query_id", "negative_id"]).to_pylist():
        mined[questions[row["query_id"]]].add(passages[row["negative_id"]])
    columns = [tuples[f"negative_{number}"] for number in range(1, NUM + 1)]
    same = [mined[query] == set(row) for query, *row in zip(tuples["query"], *columns, strict=True)]
    assert np.mean(same) > 0.95, np.mean(same)
    return float(np.mean(same))


def _memory_of(side: str, size: tuple[int, int]) -> float:
    dataset = corpus_of(*size)
    _ = dataset.query_texts, dataset.passages, dataset.positives

    def prepare(dataset: RetrievalDataset, cache: str) -> Run:
        few = {"faiss_batch_size": 256} if side == FEW_AT_ONCE else {}
        return ours(dataset) if side == "nvret" else theirs(dataset, cache, **few)

    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as cache:
        prepare(corpus_of(300, 2_000), small)()  # libraries and threads start with a small one
        run = prepare(dataset, cache)
        machine.free_memory()  # else a run may find what preparing it has left
        return extra_memory(run, torch.device("cpu"))


def _whole(queries: int, passages: int, rounds: int) -> Case:
    """Commands from files to a file: reading, encoding, copies and search, as whole processes."""
    model = str(assets.model_path(MODEL))
    seconds: dict[str, list[float]] = {}
    mebibytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs = {side: folder / f"{place}.parquet" for place, side in enumerate(WHOLE)}
        ours = [
            "nvret", "mine", "--pairs", folder / "pairs.jsonl", "--corpus", folder / "corpus.jsonl",
            "--teacher", model, "--method", "perc-pos", "--perc", PERC, "--num-negatives", 4,
            "--ceiling-positive", "lowest", "--format", "n-tuple", "--overwrite", "--output",
        ]  # fmt: skip
        for number in range(-1, rounds):  # the first warms the disk's cache up, on a few texts
            if number < 1:
                _write(corpus_of(*((300, 2_000) if number < 0 else (queries, passages))), folder)
            turn = WHOLE[:2] if number < 0 else WHOLE[number % 3 :] + WHOLE[: number % 3]
            for side in turn:
                more = [256] if side == FEW_AT_ONCE else []
                theirs = ["benchmarks.peer", folder, model, outputs[side], *more]
                command = [*ours, outputs[side]] if side == "nvret" else theirs
                taken, peak = _process(command, folder / "cache")
                if number < 0:
                    continue
                seconds.setdefault(side, []).append(taken)
                mebibytes[side] = max(mebibytes.get(side, 0), peak)
        facts = {f"{side}: {what}": count for side in ("nvret", PEER)
                 for what, count in _counted(outputs[side]).items()}  # fmt: skip
    return Case(
        "whole", f"4 negatives for {queries:,} questions from {passages:,} passages, as a command",
        seconds, mebibytes, (queries, "questions"), facts,
    )  # fmt: skip


def _write(dataset: RetrievalDataset, folder: Path) -> None:
    pairs = zip(*dataset.pairs, strict=True)
    rows = {
        "corpus": [{"id": str(row), "text": text} for row, text in enumerate(dataset.passages)],
        "pairs": [{"query": dataset.query_texts[q], "positive": dataset.passages[p]}
                  for q, p in pairs],
    }  # fmt: skip
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")


# A process counts the memory of the one that it was forked from: a small one stands between
LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(status, time.perf_counter() - start, used.ru_maxrss)
"""


def _process(command: list[object], cache: Path) -> tuple[float, float]:
    """Seconds and peak mebibytes of a command in a process of its own, with an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, sys.executable, "-m", *map(str, command)],
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"NVRET_CACHE": str(cache)},
    )  # fmt: skip
    status, seconds, kibibytes = done.stdout.split()
    assert status == "0", command
    return float(seconds), int(kibibytes) / 1024


def _counted(path: Path) -> dict[str, int]:
    """Of a file of tuples: queries, and negatives that copy another of their query."""
    rows = pq.read_table(path).to_pylist()
    lists = [[row[f"negative_{number}"] for number in range(1, 5)] for row in rows]
    texts = list(dict.fromkeys(text for some in lists for text in some))
    place = {text: row for row, text in enumerate(texts)}
    ids = np.array([[place[text] for text in some] for some in lists])
    copies = int((~near_duplicates.distinct(texts, ids, 0.8, 4)).sum())
    return {"queries": len(rows), "negatives that copy another": copies}


def _assembly(dataset: RetrievalDataset) -> Case:
    """The table of negatives alone, against a microsecond for each."""
    scorer, rule = _scorer(dataset), mining.TopKPercPos(PERC)
    rows, positives = dataset.pairs
    exclude = [dataset.positives[row] for row in rows]
    scores = scorer.pair_scores(rows, positives)
    ceilings = [rule.ceiling(scores)]
    best = mining.rank(scorer, rows, [rule], ceilings, NUM, exclude, progress=False)[0]
    ranks = np.broadcast_to(np.arange(1, NUM + 1), best.ids.shape)
    columns = {
        "query_id": dataset.queries["id"].take(pa.array(rows)),
        "positive_id": dataset.corpus["id"].take(pa.array(positives)),
        "positive_score": scores,
        "teacher": scorer.name,
        "method": str(rule),
    }
    count = int((best.ids >= 0).sum())
    sides = {"assembly": lambda: negatives.assemble(dataset, columns, best.ids, ranks, best.scores)}
    seconds = interleaved(sides, 15) | {"1 µs a negative": [1e-6 * count] * 15}
    name = f"assembly of {count:,} negatives"
    return Case("assembly", name, seconds, work=(count, "negatives"))
