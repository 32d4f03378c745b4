"""BM25 against rank_bm25, and where rank_bm25's formula is not sound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from helpers import examples
from nvret.bm25 import BM25, tokenize
from nvret.utils.errors import NvretError

words = st.lists(st.sampled_from(list("abcdefghijklmnop")), max_size=12)
texts = st.lists(words, min_size=5, max_size=40).filter(lambda ts: any(ts))


@examples(200)
@given(texts, st.lists(words, min_size=1, max_size=5))
def test_scores_equal_rank_bm25_where_its_formula_is_sound(passages, queries):
    common = {
        term
        for passage in passages
        for term in passage
        if 2 * sum(term in other for other in passages) >= len(passages)
    }
    queries = [[term for term in query if term not in common] for query in queries]
    theirs, ours = BM25Okapi(passages), BM25(passages)
    scores = ours.block_scores(queries, np.arange(len(passages)))
    for row, query in enumerate(queries):
        np.testing.assert_allclose(scores[row], theirs.get_scores(query), rtol=1e-5)
        shared = [bool(set(query) & set(passage)) for passage in passages]
        np.testing.assert_array_equal(scores[row] > 0, shared)
    rows = np.arange(len(queries)) % len(passages)
    expected = scores[np.arange(len(queries)), rows]
    np.testing.assert_allclose(ours.pair_scores(queries, rows), expected, rtol=1e-5)


def test_a_word_of_most_passages_never_lowers_a_score():
    passages = [["common", "rare"], ["common", "other"], ["common", "thing"], ["word", "more"]]
    index = BM25(passages)
    with_it, without = index.block_scores([["rare", "common"], ["rare"]], np.arange(4))
    assert with_it[0] > without[0] > 0
    assert (index.block_scores([["common"]], np.arange(3)) > 0).all()


def test_ranking_equals_the_scores_in_any_tiling():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(200)]
    passages = [rng.choice(vocabulary, 20).tolist() for _ in range(900)]
    queries = [rng.choice(vocabulary, 4).tolist() for _ in range(30)]
    index = BM25(passages)
    scores = index.block_scores(queries, np.arange(900))
    ceiling = np.quantile(scores[:, :50].clip(0), 0.99, axis=1).astype(np.float32)
    exclude = [[i, i + 1] for i in range(30)]
    got = index.top_k(queries, 8, ceiling=ceiling, exclude=exclude)
    for row in range(30):
        allowed = [
            (-s, c)
            for c, s in enumerate(scores[row])
            if 0 < s < ceiling[row] and c not in exclude[row]
        ]
        assert [c for _, c in sorted(allowed)[:8]] == [c for c in got.ids[row].tolist() if c >= 0]


def test_a_query_of_unknown_words_ranks_nothing():
    index = BM25([["known", "word"], ["another"]])
    got = index.top_k([["never", "seen"], []], k=5)
    assert (got.ids == -1).all()
    assert np.isneginf(got.scores.numpy()).all()


def test_k_larger_than_the_corpus():
    index = BM25([["one"], ["two"], ["three"], ["one", "four"]])
    assert index.top_k([["one"]], k=10).ids[0].tolist()[:3] == [0, 3, -1]


def test_nothing_to_index():
    with pytest.raises(NvretError, match="at least one passage"):
        BM25([])
    with pytest.raises(NvretError, match="at least one token"):
        BM25([[], []])


def test_tokenize():
    assert tokenize("The Café's 2nd—edition_x") == ["café", "s", "2nd", "edition_x"]


@pytest.mark.parametrize("part", [256, 1024])
def test_the_library_of_the_product_and_the_parts_change_nothing(monkeypatch, part):
    rng = np.random.default_rng(1)
    vocabulary = [f"w{i}" for i in range(100)]
    passages = [rng.choice(vocabulary, 15).tolist() for _ in range(900)]
    queries = [rng.choice([*vocabulary, "unknown"], 3).tolist() for _ in range(300)]
    expected = BM25(passages).top_k(queries, 12)
    monkeypatch.setattr("nvret.bm25.PART", part)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    got = BM25(passages).top_k(queries, 12)
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-6)
    # Where a score stands clear of its neighbours, rounding cannot change the id
    clear = np.diff(expected.scores.numpy(), axis=1, prepend=np.inf) < -1e-4
    clear[:, :-1] &= clear[:, 1:]
    clear[:, -1] = False
    assert clear.mean() > 0.1
    np.testing.assert_array_equal(got.ids.numpy()[clear], expected.ids.numpy()[clear])
