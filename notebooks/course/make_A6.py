"""Write `A6_candidates.npz`: what a teacher offers as negatives for NQ's training questions.

    python notebooks/course/make_A6.py

The training questions, their passages and the teacher are those of the profile `quick`: a question
that shares wording with a test question is not among them, and no held-out passage is a candidate.
Labelled positives, and passages that are near-copies of one, are no candidates either.

A row holds the 20 best candidates, the first four below 95 % of the positive's score, the first
four below 80 % of it, and the next best ones where these are among the 20 already; sorted, best
first. So naive mining, shifts by up to 16 ranks and the two percentages read their four negatives
off a row, however deep the ceiling cuts. Scores are rounded down and the positive's is rounded up,
so that rounding lifts no candidate to its ceiling.

The file holds numbers alone, no text: rows of `nvret.data.load("nq")`, whose fingerprint is kept
beside them. Two calls on one machine write the same bytes; another machine may swap two candidates
whose scores agree to six digits.

Arrays, for P (question, positive) pairs:
    fingerprint: of the data set, as a string.
    question, positive: (P,) uint16, rows of `queries` and of `corpus`.
    candidates: (P, 28) uint16, rows of `corpus`.
    score, positive_score: (P, 28) and (P,) float16, the teacher's cosines.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from nvret import data
from nvret.methods import NaiveTopK, TopKPercPos
from nvret.study import config
from nvret.study.workspace import Workspace

HERE = Path(__file__).parent
BEST, NEGATIVES = 20, 4
RULES = (TopKPercPos(0.95), TopKPercPos(0.8))
DEPTH = BEST + NEGATIVES * len(RULES)


def main() -> None:
    workspace = Workspace(config.load(HERE.parents[1] / "params" / "quick.yaml"))
    whole, train, teacher = data.load("nq"), workspace.train(), workspace.scorer()
    question, positive = train.pairs
    positive_score = teacher.pair_scores(question, positive)
    exclude = [workspace.exclusions()[row] for row in question]

    def top(rule: NaiveTopK | TopKPercPos, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = teacher.top_k(question, k, rule.ceiling(positive_score), exclude)
        return found.ids.numpy(), found.scores.numpy()

    best = top(NaiveTopK(), DEPTH)
    below = [top(rule, NEGATIVES) for rule in RULES]
    # those that must be there come first, and a repeated passage counts once
    parts = [(best[0][:, :BEST], best[1][:, :BEST]), *below, (best[0][:, BEST:], best[1][:, BEST:])]
    ids, scores = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    chosen = np.stack([np.sort(np.unique(row, return_index=True)[1])[:DEPTH] for row in ids])
    ids, scores = (np.take_along_axis(array, chosen, 1) for array in (ids, scores))
    order = np.argsort(-scores, axis=1, kind="stable")
    ids, scores = (np.take_along_axis(array, order, 1) for array in (ids, scores))
    assert ids.min() >= 0, "a question has fewer candidates than the file keeps"
    # rows of the training part -> rows of the whole set
    question_row = pc.index_in(train.queries["id"], whole.queries["id"]).to_numpy()
    passage_row = pc.index_in(train.corpus["id"], whole.corpus["id"]).to_numpy()
    np.savez_compressed(
        HERE / "A6_candidates.npz",
        fingerprint=np.array(whole.fingerprint),
        question=question_row[question].astype(np.uint16),
        positive=passage_row[positive].astype(np.uint16),
        candidates=passage_row[ids].astype(np.uint16),
        score=rounded(scores, -np.inf),
        positive_score=rounded(positive_score, np.inf),
    )


def rounded(values: np.ndarray, towards: float) -> np.ndarray:
    """As float16, never on the other side of the value than ``towards``."""
    nearest = values.astype(np.float16)
    wrong = (nearest < values) if towards > 0 else (nearest > values)
    return np.where(wrong, np.nextafter(nearest, np.float16(towards)), nearest)


if __name__ == "__main__":
    main()
