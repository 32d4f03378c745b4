"""Exact search against a brute-force oracle, on adversarial scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.search import oracle, problems
from nvret import search
from nvret.scale import tiles as threads
from nvret.search import top_k, top_k_scores
from nvret.utils.errors import NvretError


@pytest.fixture(params=[None, "one query a tile", "small tiles"])
def tiles(request, monkeypatch):
    """The answer may not depend on how the work is cut up."""
    if request.param == "one query a tile":
        monkeypatch.setattr(search, "QUERY_TILE", 1)
    if request.param == "small tiles":
        monkeypatch.setattr(search, "BLOCK", 8)
        monkeypatch.setattr(search, "QUERY_TILE", 3)
        return {"buffer_mb": 3 * 4 * 100 / 2**20}  # 100 passages a tile
    return {}


DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_oracle(tiles, device):
    @examples(150)
    @given(problems())
    def check(problem):
        queries, corpus, k, ceiling, exclude = problem
        got = top_k(queries, corpus, k, ceiling=ceiling, exclude=exclude, device=device, **tiles)
        ids, scores = oracle(
            queries.astype(np.float64) @ corpus.astype(np.float64).T, k, ceiling, exclude
        )
        np.testing.assert_array_equal(got.ids.numpy(), ids)
        np.testing.assert_array_equal(got.scores.numpy(), scores.astype(np.float32))

    check()


def test_real_valued_scores_on_the_block_path():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((300, 16)).astype(np.float32)
    corpus = rng.standard_normal((5003, 16)).astype(np.float32)
    exact = queries.astype(np.float64) @ corpus.astype(np.float64).T
    ceiling = np.quantile(exact, 0.99, axis=1).astype(np.float32)
    exclude = [np.argsort(-row)[50:60].tolist() for row in exact]
    got = top_k(queries, corpus, 7, ceiling=ceiling, exclude=exclude)
    ids, scores = oracle(exact, 7, ceiling, exclude)
    np.testing.assert_array_equal(got.ids.numpy(), ids)
    np.testing.assert_allclose(got.scores.numpy(), scores, rtol=1e-5, atol=1e-5)


def test_agrees_with_faiss():
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((50, 32)).astype(np.float32)
    corpus = rng.standard_normal((4000, 32)).astype(np.float32)
    index = faiss.IndexFlatIP(32)
    index.add(corpus)
    scores, ids = index.search(queries, 10)
    got = top_k(queries, corpus, 10)
    np.testing.assert_array_equal(got.ids.numpy(), ids)
    np.testing.assert_allclose(got.scores.numpy(), scores, rtol=1e-5, atol=1e-5)


def test_the_ceiling_is_strict():
    passages = torch.tensor([[0.5], [0.25], [0.125]])
    got = top_k(torch.ones(1, 1), passages, 3, ceiling=torch.tensor([0.5]))
    assert got.ids.tolist() == [[1, 2, -1]]


def test_a_large_corpus_of_equal_scores_is_ordered_by_id():
    got = top_k(torch.ones(2, 4), torch.ones(3000, 4), 5, exclude=[[1], []])
    assert got.ids.tolist() == [[0, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_memory_map_and_half_precision(tmp_path):
    corpus = np.random.default_rng(2).standard_normal((100, 8)).astype(np.float16)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    expected, _ = oracle(corpus[:5].astype(np.float64) @ corpus.astype(np.float64).T, 3)
    np.testing.assert_array_equal(top_k(mapped[:5], mapped, 3).ids.numpy(), expected)


def test_no_query_and_no_passage():
    assert top_k(torch.ones(0, 4), torch.ones(3, 4), 2).ids.shape == (0, 2)
    assert top_k(torch.ones(2, 4), torch.ones(0, 4), 2).ids.tolist() == [[-1, -1], [-1, -1]]


def test_a_scorer_may_refuse_candidates():
    scores = torch.tensor([[1.0, -torch.inf, 0.5]])
    got = top_k_scores(lambda rows, columns, out: out.copy_(scores[rows, columns]), 1, 3, 3)
    assert got.ids.tolist() == [[0, 2, -1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: top_k(v, v[:, :2], 1), "dimensions"),
        (lambda v: top_k(v, v, 0), "at least 1"),
        (lambda v: top_k(v, torch.where(torch.arange(6)[:, None] == 4, torch.nan, v), 1), "row 4"),
        (lambda v: top_k(torch.where(torch.arange(6)[:, None] == 2, torch.inf, v), v, 1), "row 2"),
        (lambda v: top_k(v, v, 1, ceiling=torch.tensor([0, 0, torch.nan, 0, 0, 0])), "row 2"),
        (lambda v: top_k(v, v, 1, ceiling=torch.zeros(5)), "shape"),
        (lambda v: top_k(v, v, 1, exclude=[[]] * 5), "5 lists for 6"),
        (lambda v: top_k(v, v, 1, exclude=[[], [6], [], [], [], []]), "row 1 names passage 6"),
        (lambda v: top_k(v.long(), v, 1), "floating-point"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(NvretError, match=message):
        call(torch.ones(6, 3))


@pytest.mark.parametrize("rows", [(1, 1), (2, 3), threads.ROWS])
def test_a_thread_for_each_tile_changes_nothing(monkeypatch, rows):
    monkeypatch.setattr(threads, "ROWS", rows)
    monkeypatch.setattr(threads, "TASK", 4)

    @examples(100)
    @given(
        problems(), st.sampled_from([search.NOTHING, -2.0, 0.0]), st.sampled_from([64, 128, 512])
    )
    def check(problem, floor, most):
        queries, corpus, k, ceiling, exclude = problem
        exact = queries.astype(np.float64) @ corpus.astype(np.float64).T
        scores = torch.from_numpy(exact).float()
        scores[scores == 0] *= -1  # -0 comes no later than 0
        options = {"ceiling": ceiling, "exclude": exclude, "floor": floor, "most_passages": most}
        got = threads.top_k_scores(
            lambda rows, columns, out: out.copy_(scores[rows, columns]), *exact.shape, k, **options
        )
        ids, best = oracle(np.where(exact > floor, exact, np.nan), k, ceiling, exclude)
        np.testing.assert_array_equal(got.ids.numpy(), ids)
        np.testing.assert_array_equal(got.scores.numpy(), best.astype(np.float32))

    check()


def test_numbers_are_in_the_order_of_scores_and_places():
    tiny = np.float32(1e-45)
    scores = np.float32([np.inf, 3.5, 1, 1, tiny, 0, -0.0, -tiny, -1, -3.5, -np.inf])
    places = np.arange(len(scores)) + 2**32 - len(scores)
    numbers = threads._numbers(scores, places)
    assert (np.diff(numbers) > 0).all()
    read = threads._read(numbers)
    np.testing.assert_array_equal(read[0], places)
    np.testing.assert_array_equal(read[1], scores)


def test_a_fault_is_named_by_its_row_of_all(monkeypatch):
    monkeypatch.setattr(threads, "TASK", 2)
    ceiling = torch.tensor([0, 0, 0, 0, torch.nan])
    with pytest.raises(NvretError, match="row 4 is NaN"):
        threads.top_k_scores(None, 5, 3, 1, ceiling=ceiling)
    with pytest.raises(NvretError, match="row 3 names passage 7"):
        threads.top_k_scores(None, 5, 3, 1, exclude=[[], [], [], [7], []])
