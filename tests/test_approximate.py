"""An approximate index: what it finds is allowed, what it misses is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret import mining, negatives, search, teachers
from nvret.data import load
from nvret.scale import faiss_index
from nvret.scale.faiss_index import Index, Searcher
from nvret.study import mixtures
from nvret.utils.errors import NvretError


def vectors(passages=3000, queries=50, dimension=16, seed=0):
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((passages + queries, dimension)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made[:queries], made[queries:]


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16"])
def test_with_all_probes_it_is_nearly_the_exact_search(factory):
    queries, corpus = vectors()
    searcher = Searcher(corpus, Index(factory, 16 if "IVF" in factory else 512))
    found, exact = searcher.top_k(queries, 10), search.top_k(queries, corpus, 10)
    hits = [len(np.intersect1d(*rows)) for rows in zip(found.ids, exact.ids, strict=True)]
    assert np.mean(hits) == 10 if "IVF" in factory else np.mean(hits) > 9.5
    facts = searcher.facts(queries, 10)
    assert facts["recall"] == pytest.approx(np.mean(hits) / 10, abs=1e-4)
    assert facts["questions"] == 50


def test_fewer_probes_find_less_and_the_recall_says_so():
    queries, corpus = vectors()
    recalls = [Searcher(corpus, Index("IVF64,Flat", probes)).facts(queries, 10)["recall"]
               for probes in (1, 8, 64)]  # fmt: skip
    assert recalls[0] < recalls[1] < recalls[2] == 1


@examples(30)
@given(st.integers(0, 100), st.floats(-0.5, 0.9), st.integers(0, 60))
def test_ceiling_and_exclusions_hold_and_a_deeper_search_fills(seed, limit, excluded):
    queries, corpus = vectors(400, 7, 8, seed)
    rng = np.random.default_rng(seed)
    ceiling = np.full(7, limit, np.float32)
    exclude = [rng.choice(400, excluded, replace=False) for _ in range(7)]
    searcher = Searcher(corpus, Index("IVF4,Flat", 4))  # all lists: nothing can be missed
    found = searcher.top_k(queries, 5, ceiling=ceiling, exclude=exclude)
    exact = search.top_k(queries, corpus, 5, ceiling=ceiling, exclude=exclude)
    near = np.abs(queries @ corpus.T - limit).min() < 1e-5  # the index rounds in its own way
    if not near:
        np.testing.assert_array_equal(found.ids, exact.ids)
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-5) if not near else None


def test_what_a_gpus_index_leaves_unfilled_is_searched_exactly():
    queries, corpus = vectors(400, 7, 8, 1)
    searcher = Searcher(corpus, Index("IVF4,Flat", 1))
    searcher.deepest = 16  # as on a GPU, where it is 2,048
    asked = {"ceiling": np.full(7, -0.1, np.float32), "exclude": [[1, 2]] * 7}
    found, exact = searcher.top_k(queries, 5, **asked), search.top_k(queries, corpus, 5, **asked)
    np.testing.assert_array_equal(found.ids, exact.ids)


def test_the_provenance_says_what_was_missed():
    data = mixtures.sample_passages(mixtures.sample(load("squadshifts-nyt"), 40), 300)
    dense = teachers.DenseTeacher("potion-base-8m", index=Index("IVF8,Flat", 8))
    table = mining.mine(data, dense, mining.TopKPercPos(0.95), 3, progress=False)
    said = negatives.provenance(table)["search"]
    assert said["factory"] == "IVF8,Flat"
    assert said["recall"] == 1
    exact = mining.mine(data, teachers.DenseTeacher("potion-base-8m"), mining.TopKPercPos(0.95), 3,
                        progress=False)  # fmt: skip
    assert "search" not in negatives.provenance(exact)
    columns = ["query_id", "positive_id", "negative_id", "rank"]
    assert table.select(columns).equals(exact.select(columns))
    keys = {negatives.provenance(t)["teacher_fingerprint"] for t in (table, exact)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda corpus: Searcher(corpus, Index("ABC12")), "'ABC12' is none of faiss's"),
        (lambda corpus: Searcher(corpus[:3], Index("IVF16,Flat")), "cannot be fitted to 3"),
        (lambda corpus: Index("HNSW32", 0), "probes is 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(NvretError, match=message):
        make(vectors()[1])


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(NvretError, match="extra 'faiss'"):
        faiss_index._faiss()
