"""Real teachers on a small data set: what they score and how they rank it."""

import numpy as np
import pytest

from nvret import data, mining, negatives, teachers
from nvret.analysis import precision

PASSAGES = [
    "Paris is the capital of France.",
    "Lyon is a large city in the south-east of France.",
    "Berlin is the capital of Germany.",
    "Bananas grow in bunches in warm countries.",
    "The capital of France is Paris, on the river Seine.",
]


@pytest.fixture(scope="module")
def dataset():
    questions = ["what is the capital of France", "where do bananas grow", "zzzz"]
    return data.from_texts("toy", PASSAGES, questions, [[0], [3], [1]])


@pytest.mark.parametrize("name", ["bm25", "potion-base-8m", "paraphrase-minilm-l3"])
def test_pair_scores_are_the_scores_of_the_ranking(dataset, name):
    scorer = teachers.prepare(name, dataset, progress=False)
    rows = np.arange(len(dataset.queries))
    found = scorer.top_k(rows, len(PASSAGES))
    for row in rows:
        ids = found.ids[row].numpy()
        kept = ids >= 0
        scores = scorer.pair_scores(np.full(kept.sum(), row), ids[kept])
        np.testing.assert_allclose(found.scores[row].numpy()[kept], scores, rtol=1e-5, atol=1e-6)
    assert found.ids[0, 0] in (0, 4)
    assert found.ids[1, 0] == 3


def test_bm25_has_no_candidate_that_shares_no_word(dataset):
    table = mining.mine(dataset, "bm25", mining.NaiveTopK(), 2, progress=False)
    # Bananas stand in no passage but the positive one, and "zzzz" in none at all
    assert set(table["query_id"].to_pylist()) == {"q0"}
    assert negatives.provenance(table)["pairs_empty"] == 2


def test_a_scorer_is_taken_as_it_is(dataset):
    scorer = teachers.prepare("bm25", dataset)
    assert teachers.prepare(scorer, dataset) is scorer


def test_mined_from_a_real_teacher(dataset):
    table = mining.mine(
        dataset, "potion-base-8m", mining.TopKPercPos(0.95), 3, progress=False
    ).to_pandas()
    assert (table["score"] < 0.95 * table["positive_score"] + 1e-6).all()
    assert set(table["teacher"]) == {"potion-base-8m"}


@pytest.mark.parametrize("ceiling_positive", ["own", "lowest"])
def test_half_precision_is_measured_against_float32(dataset, ceiling_positive):
    method, asked = mining.TopKPercPos(0.9), {"ceiling_positive": ceiling_positive}
    several = data.from_texts("toy", PASSAGES, ["the capital of France"], [[0, 4]])
    for one in (dataset, several):
        half = teachers.DenseTeacher("paraphrase-minilm-l3", dtype="bfloat16")
        table = mining.mine(one, half, method, 3, **asked, near_duplicates=None, progress=False)
        exact = teachers.prepare("paraphrase-minilm-l3", one, progress=False)
        scores = exact.queries @ exact.corpus.T
        positives = [scores[query, rows] for query, rows in enumerate(one.positives)]
        gaps, above = [], 0
        for row in table.to_pylist():
            query, passage, positive = (
                int(row[key][1:]) for key in ("query_id", "negative_id", "positive_id")
            )
            own = (
                positives[query].min() if ceiling_positive == "lowest" else scores[query, positive]
            )
            gaps.append(abs(scores[query, passage] - row["score"]))
            above += scores[query, passage] >= 0.9 * own
        found = precision.agreement(one, half, table)
        assert found["negatives"] == table.num_rows > 0
        assert found["largest_difference"] == pytest.approx(max(gaps), abs=2e-6)
        assert found["mean_difference"] == pytest.approx(np.mean(gaps), abs=2e-6)
        assert found["above_ceiling"] == above
