"""Search behind a screen: exact, whatever the approximate scores are within their bound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.search import oracle, problems
from nvret import mining, negatives, search, teachers
from nvret.data import load
from nvret.scale import faiss_index, screen
from nvret.study import mixtures


class Noisy:
    """Approximate scores: as far off as they may be, up or down, and rounded."""

    def __init__(self, queries, corpus, most, seed):
        draw = torch.Generator().manual_seed(seed)
        exact = queries.double() @ corpus.double().T
        self.errors = most * torch.rand(len(queries), generator=draw)
        sign = 2 * torch.randint(0, 2, exact.shape, generator=draw) - 1
        self.scores, self.corpus = exact + self.errors[:, None] * sign, corpus

    def __call__(self, rows, columns, out):
        self.exact = self.corpus[columns]
        out.copy_(self.scores[rows, columns])


@pytest.mark.parametrize("block", [8, 64])
def test_equals_the_oracle_whatever_the_approximation(block, monkeypatch):
    """Most problems fill no tile; then blocks are small, and tiles as well."""
    monkeypatch.setattr(search, "BLOCK", block)
    monkeypatch.setattr(search, "QUERY_TILE", 5)
    monkeypatch.setattr(screen, "DOUBTFUL", 3)

    @examples(150)
    @given(problems(), st.floats(0, 3), st.sampled_from([1, 20]), st.integers(0, 99))
    def check(problem, most, crowded, seed):
        monkeypatch.setattr(screen, "CROWDED", crowded)
        queries, corpus, k, ceiling, exclude = problem
        left, right = torch.from_numpy(queries), torch.from_numpy(corpus)
        options = {"ceiling": ceiling, "exclude": exclude, "buffer_mb": 5 * 4 * 200 / 2**20}
        got = screen.screened(left, right, k, Noisy(left, right, most, seed), **options)
        scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
        ids, best = oracle(scores, k, ceiling, exclude)
        np.testing.assert_array_equal(got.ids.numpy(), ids)
        np.testing.assert_array_equal(got.scores.numpy(), best.astype(np.float32))

    check()


@examples(50)
@given(problems())
def test_pairs_are_scored_alike_one_by_one_and_together(problem):
    queries, corpus = map(torch.from_numpy, problem[:2])
    rows, columns = torch.cartesian_prod(*map(torch.arange, map(len, (queries, corpus)))).T
    scores = screen._scored(queries, corpus, rows, columns)
    assert torch.equal(screen._scored_together(queries, corpus, rows, columns), scores)


@examples(50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 96]), st.floats(-3, 3))
def test_the_bound_holds_for_products_of_rounded_vectors(seed, dimension, power):
    draw = np.random.default_rng(seed)
    scale = 10.0**power
    queries, corpus = (
        torch.from_numpy((scale * draw.standard_normal((n, dimension))).astype(np.float32))
        for n in (5, 200)
    )
    exact = queries.double() @ corpus.double().T
    summed = queries.bfloat16().float() @ corpus.bfloat16().float().T
    score = screen.Screen(queries, corpus, torch.device("cpu"))
    score(slice(0, 5), slice(0, 200), torch.empty(200, 5, dtype=torch.bfloat16).T)
    errors = score.errors[:, None].double()
    assert ((summed.double() - exact).abs() <= errors).all()
    rounded = summed.bfloat16().double()
    assert (exact <= screen._highest(rounded, errors)).all()
    assert (rounded <= screen._highest(exact, errors)).all()
    lengths = queries.norm(dim=1)[:, None] * corpus.norm(dim=1).max()
    assert (errors <= 3 * screen.UNIT * lengths).all()


def test_a_limit_that_is_infinite_stays():
    for value in (torch.inf, -torch.inf):
        limit = torch.tensor([value], dtype=torch.float64)
        assert screen._highest(limit, torch.ones(1)).item() == value


def vectors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = torch.randn(4_300, 64, generator=draw)
    made[50:60] = made[70]  # copies
    made = torch.nn.functional.normalize(made, dim=1)
    return made[:100], made[100:]


@pytest.fixture
def fast(monkeypatch):
    """The screen is used, also on a processor that is slow in bfloat16, and on a small corpus."""
    monkeypatch.setattr(screen, "is_fast", lambda device: True)
    monkeypatch.setattr(search, "BLOCK", 8)


@pytest.mark.parametrize("k", [1, 10, 64])
def test_the_same_as_plain_search(fast, k, monkeypatch):
    queries, corpus = vectors()
    plain = search.top_k(queries, corpus, k)
    monkeypatch.setattr(search, "top_k", None)  # nothing is left for it
    monkeypatch.setattr(screen, "CROWDED", 100)
    found = screen.top_k(queries, corpus, k)
    np.testing.assert_allclose(found.scores, plain.scores, atol=2e-7)
    exact = queries.double() @ corpus.double().T
    ids, scores = oracle(exact.float().numpy(), k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.scores, scores.astype(np.float32))


def test_on_other_processors_it_is_plain_search(monkeypatch):
    monkeypatch.setattr(screen, "is_fast", lambda device: False)
    queries, corpus = vectors()
    found, plain = screen.top_k(queries, corpus, 5), search.top_k(queries, corpus, 5)
    assert torch.equal(found.ids, plain.ids)
    assert torch.equal(found.scores, plain.scores)


def test_the_same_negatives_are_mined(fast):
    data = mixtures.sample_passages(mixtures.sample(load("squadshifts-nyt"), 40), 300)
    made = []
    for index in (None, faiss_index.named("screen", 64)):
        teacher = teachers.DenseTeacher("potion-base-8m", index=index)
        made.append(mining.mine(data, teacher, mining.TopKPercPos(0.95), 3, progress=False))
    columns = ["query_id", "positive_id", "negative_id", "rank"]
    assert made[0].select(columns).equals(made[1].select(columns))
    assert len({negatives.provenance(table)["teacher_fingerprint"] for table in made}) == 2
