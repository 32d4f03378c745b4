"""The numbers of A2: what one teacher thinks of negatives from four sources, on real questions.

    python notebooks/course/make_A2.py [FILE]

writes scores and row numbers, and no text, to ``A2_scores.npz`` beside this script (or FILE). The
questions and passages are those of ``nvret.data.load("nq")``, the teacher is ``minilm-l6``; both
are fetched if they are not there. Deterministic, up to the last digit of a score on another
machine. About a minute of one CPU core, most of it for the vectors.

| array | shape | what |
|---|---|---|
| ``positive`` | (512,) | teacher's score of each question and its labelled passage |
| ``positive_row`` | (512,) | that passage's row in the sample; two questions may share one |
| ``batches`` | (16, 32) | the questions, shuffled into batches |
| ``in_batch`` | (16, 32, 32) | teacher's score of question i with the positive of question j |
| ``random``, ``bm25``, ``dense`` | (512, 4) | teacher's scores of four negatives of that source |
| ``edges`` | (131,) | edges of the bins of a score, a hundredth wide |
| ``counts`` | (512, 130) | how many of the sample's passages the teacher scores within each bin |
| ``bm25_scores_positive`` | (512,) | BM25's score of each question and its labelled passage |
| ``bm25_scores_random``, ``…_bm25``, ``…_dense`` | (512, 4) | BM25's scores of the same negatives |

A question's labelled passage, and copies of it, are no negatives of its own and not counted
(``nvret.mining.exclusions``); in a batch they are left in, to be masked there.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from nvret import data, methods, mining, teachers

QUESTIONS, BATCH, PASSAGES, NEGATIVES = 512, 32, 3000, 4
EDGES = np.arange(-30, 101) / 100
SEED = 0


def sample(rng: np.random.Generator) -> data.RetrievalDataset:
    """Questions with one labelled passage each, drawn at random; those passages, and others."""
    nq = data.load("nq")
    single = [row for row, positives in enumerate(nq.positives) if len(positives) == 1]
    queries = rng.choice(single, QUESTIONS, replace=False)
    own = np.unique(np.concatenate([nq.positives[row] for row in queries]))
    rest = np.setdiff1d(np.arange(nq.corpus.num_rows), own)
    rows = np.concatenate([own, rng.choice(rest, PASSAGES - len(own), replace=False)])
    passage_ids = nq.corpus["id"].take(rows).to_pylist()
    return nq.select(nq.queries["id"].take(queries).to_pylist(), corpus_ids=passage_ids)


def main(target: Path) -> None:
    rng = np.random.default_rng(SEED)
    small = sample(rng)
    queries, positives = small.pairs
    teacher = teachers.prepare("minilm-l6", small)
    bm25 = teachers.prepare("bm25", small)
    exclude = mining.exclusions(small)

    def mined(scorer: teachers.Scorer, method: methods.Method) -> np.ndarray:
        """(512, 4) rows of passages; an error where a question has fewer than four."""
        table = mining.mine(small, scorer, method, NEGATIVES, exclude=exclude, progress=False)
        rows = pc.index_in(table["negative_id"], small.corpus["id"].combine_chunks())
        return rows.to_numpy().astype(np.int64).reshape(QUESTIONS, NEGATIVES)

    negatives = {
        "random": mined(teacher, methods.RandomNegatives()),
        "bm25": mined(bm25, methods.NaiveTopK()),
        "dense": mined(teacher, methods.NaiveTopK()),
    }
    scores = teacher.block_scores(queries, np.arange(PASSAGES))
    counts = [
        np.histogram(np.delete(row, gone), EDGES)[0]
        for row, gone in zip(scores, exclude, strict=True)
    ]
    assert [row.sum() for row in counts] == [PASSAGES - len(gone) for gone in exclude]

    batches = rng.permutation(QUESTIONS).reshape(-1, BATCH)
    arrays = {
        "positive": scores[queries, positives],
        "positive_row": positives.astype(np.int16),
        "batches": batches.astype(np.int16),
        "in_batch": scores[batches[:, :, None], positives[batches][:, None]].astype(np.float16),
        "edges": EDGES,
        "counts": np.array(counts, np.uint16),
        "bm25_scores_positive": bm25.pair_scores(queries, positives),
    }
    for source, rows in negatives.items():
        arrays[source] = np.take_along_axis(scores, rows, 1)
        of_bm25 = bm25.pair_scores(queries.repeat(NEGATIVES), rows.ravel())
        arrays[f"bm25_scores_{source}"] = of_bm25.reshape(rows.shape)
    np.savez_compressed(target, **arrays)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "A2_scores.npz")
