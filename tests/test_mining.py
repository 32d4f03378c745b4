"""Mining against a float64 brute-force oracle, on data with every trap that real sets have."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.mining import MatrixTeacher
from nvret import mining, negatives
from nvret.data import from_texts
from nvret.mining import (
    NaiveTopK,
    RandomNegatives,
    SampledTopK,
    Top1PlusSampled,
    TopK,
    TopKAbs,
    TopKMarginPos,
    TopKPercPos,
    TopKShifted,
)
from nvret.sampling import draw_rows
from nvret.utils import near_duplicates
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import near_duplicate_pairs, normalise

METHODS = [
    NaiveTopK(),
    TopKShifted(2),
    TopKAbs(0.3),
    TopKMarginPos(0.05),
    TopKMarginPos(-0.5),
    TopKPercPos(0.95),
    TopKPercPos(0.5),
    TopKPercPos(1.05),
]


def dataset(passages, queries, positives):
    return from_texts("toy", passages, queries, positives)


class Slow(MatrixTeacher):
    """A teacher that reads until the exclusions have ended, or begun."""

    def __init__(self, scores, event, error=None):
        super().__init__(scores)
        self.event, self.error = event, error

    def prepare(self, dataset, *, progress=True):
        assert self.event.wait(20)
        if self.error:
            raise self.error
        return self


def test_copies_are_looked_for_while_the_teacher_reads(monkeypatch):
    ended, look = threading.Event(), mining.exclusions

    def exclusions(*arguments):
        try:
            return look(*arguments)
        finally:
            ended.set()

    toy = dataset(["a b c", "A b, c", "d e f"], ["q"], [[0]])
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    expected = mining.mine(toy, MatrixTeacher(scores), NaiveTopK(), 2, progress=False)
    monkeypatch.setattr(mining, "exclusions", exclusions)
    found = mining.mine(toy, Slow(scores, ended), NaiveTopK(), 2, progress=False)
    assert found["negative_id"].to_pylist() == ["p2"]
    assert found.equals(expected)

    def broken(*arguments):
        ended.set()
        raise NvretError("no words")

    monkeypatch.setattr(mining, "exclusions", broken)
    with pytest.raises(NvretError, match="no words"):
        mining.mine(toy, Slow(scores, ended), NaiveTopK(), 2, progress=False)


def test_a_teachers_error_waits_for_nothing(monkeypatch):
    begun, never = threading.Event(), threading.Event()

    def exclusions(*arguments):
        begun.set()
        never.wait(60)

    monkeypatch.setattr(mining, "exclusions", exclusions)
    toy, scores = dataset(["a b c", "d e f"], ["q"], [[0]]), np.ones((1, 2), np.float32)
    teacher = Slow(scores, begun, NvretError("texts[0] has no token"))
    try:
        with pytest.raises(NvretError, match="no token"):
            mining.mine(toy, teacher, NaiveTopK(), 1, progress=False)
        assert any(thread.name == "nvret-beside" for thread in threading.enumerate())
    finally:
        never.set()


@st.composite
def problems(draw):
    """Scores on a coarse grid (ties, negative values); twins; queries that stand in the corpus."""
    n, q = draw(st.integers(1, 25)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    words = [f"Text number {rng.integers(0, 2 * n)}" for _ in range(n)]
    passages = [w.upper() if rng.random() < 0.3 else w for w in words]
    queries = [
        passages[rng.integers(n)] + "?" if rng.random() < 0.3 else f"question {i}"
        for i in range(q)
    ]  # fmt: skip
    positives = [sorted(rng.permutation(n)[: rng.integers(1, 4)].tolist()) for _ in range(q)]
    grid = draw(st.sampled_from([3, 8, 1000]))
    scores = (rng.integers(-grid, grid + 1, (q, n)) / grid).astype(np.float32)
    return dataset(passages, queries, positives), scores


def oracle(
    data, scores, method, num, ceiling_positive="own", safe=False, skip=0, least=-9, distinct=False
):
    """Rows (query, positive, negative, rank) by the definition, one pair at a time."""
    rows = []
    passages = [normalise(text) for text in data.passages]
    for q, positives in enumerate(data.positives):
        banned = {
            c
            for c, text in enumerate(passages)
            if text in {passages[p] for p in positives} | {normalise(data.query_texts[q])}
        }
        exact = scores[q].astype(np.float64)
        for p in positives:
            limiting = exact[positives].min() if ceiling_positive == "lowest" else exact[p]
            match method:
                case TopKAbs():
                    limit = method.threshold
                case TopKMarginPos():
                    limit = limiting - method.margin
                case TopKPercPos() if safe and limiting < 0:
                    limit = limiting * (2 - method.perc)
                case TopKPercPos():
                    limit = limiting * method.perc
                case _:
                    limit = np.inf
            limit = np.float32(limit)
            ranked = sorted(
                (c for c in range(len(passages)) if c not in banned and scores[q, c] < limit),
                key=lambda c: (-exact[c], c),
            )
            if distinct:  # of equal texts the first alone
                first = {passages[c]: c for c in reversed(ranked)}
                ranked = [c for c in ranked if first[passages[c]] == c]
            kept = list(enumerate(ranked, 1))[method.skip + skip :][:num]
            kept = [(rank, c) for rank, c in kept if scores[q, c] >= np.float32(least)]
            rows += [(f"q{q}", f"p{p}", f"p{c}", rank) for rank, c in kept]
    return rows


def rows_of(table):
    columns = ("query_id", "positive_id", "negative_id", "rank")
    return list(zip(*(table[c].to_pylist() for c in columns), strict=True))


@pytest.mark.parametrize("method", METHODS, ids=str)
@examples(60)
@given(problems(), st.integers(1, 5), st.sampled_from(["own", "lowest"]), st.booleans())
def test_equals_the_definition(method, problem, num, ceiling_positive, safe):
    data, scores = problem
    table = mining.mine(
        data, MatrixTeacher(scores), method, num,
        ceiling_positive=ceiling_positive, near_duplicates=None,
        negative_positives="safe" if safe else "literal", progress=False,
    )  # fmt: skip
    expected = oracle(data, scores, method, num, ceiling_positive, safe)
    assert rows_of(table) == expected
    facts = negatives.provenance(table)
    pairs = sum(map(len, data.positives))
    assert facts["pairs"] == pairs
    assert facts["negatives_missing"] == pairs * num - len(expected)
    assert facts["pairs_empty"] == pairs - len({row[:2] for row in expected})


@pytest.mark.parametrize("method", METHODS, ids=str)
@examples(40)
@given(problems(), st.integers(1, 3), st.integers(0, 4), st.sampled_from([-9, 0.0, 0.25, 0.5]))
def test_further_filters_equal_their_definition(method, problem, num, skip, least):
    data, scores = problem
    for distinct in (None, 1.0):
        table = mining.mine(
            data, MatrixTeacher(scores), method, num, near_duplicates=None, progress=False,
            skip=skip, min_score=None if least == -9 else least, distinct=distinct,
        )  # fmt: skip
        expected = oracle(
            data, scores, method, num, skip=skip, least=least, distinct=bool(distinct)
        )
        assert rows_of(table) == expected
        facts = negatives.provenance(table)
        assert (facts["skip"], facts["distinct"]) == (skip, distinct)


def test_a_family_of_copies_gives_one_negative():
    """However many they are: the search goes on until it finds others."""
    family = [f"the river runs to the sea and on day number {n} it came back" for n in range(300)]
    others = ["something else entirely and no more", "snow fell on the hills all night long"]
    data = dataset([*family, *others, "the answer"], ["what is it?"], [[302]])
    scores = np.linspace(0.9, 0.1, 303, dtype=np.float32)[None]
    options = {"near_duplicates": None, "progress": False}
    for distinct, expected in ((None, ["p0", "p1", "p2"]), (0.5, ["p0", "p300", "p301"])):
        table = mining.mine(
            data, MatrixTeacher(scores), NaiveTopK(), 3, distinct=distinct, **options
        )
        assert table["negative_id"].to_pylist() == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 4))
def test_distinct_is_greedy(seed, threshold, most):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(list("abcd"), rng.integers(1, 7))) for _ in range(12)]
    ids = np.array([rng.permutation(12)[:8] for _ in range(5)])
    for row, number in zip(ids, rng.integers(0, 9, 5), strict=True):
        row[number:] = -1
    left, right, _ = near_duplicate_pairs(texts, threshold=threshold)
    twins = {frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    expected = []
    for row in ids.tolist():
        taken = []
        for one in row:
            fresh = all(frozenset((one, other)) not in twins for other in taken)
            if one >= 0 and len(taken) < most and fresh:
                taken.append(one)
        expected.append([one in taken and one >= 0 for one in row])
    found = near_duplicates.distinct(texts, ids, threshold, most)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", [*METHODS, RandomNegatives()], ids=str)
@pytest.mark.parametrize("sampling", [TopK(), SampledTopK(5), Top1PlusSampled(5)], ids=str)
@examples(20)
@given(problems(), st.integers(0, 3))
def test_draws_do_not_depend_on_the_other_queries(method, sampling, problem, seed):
    data, scores = problem
    ask = {"num_negatives": 3, "sampling": sampling, "seed": seed, "progress": False}
    whole = mining.mine(data, MatrixTeacher(scores), method, **ask)
    assert whole.equals(mining.mine(data, MatrixTeacher(scores), method, **ask))
    backwards = list(range(len(scores)))[::-1]
    reordered = data.select([f"q{q}" for q in backwards])
    order = [int(name[1:]) for name in reordered.queries["id"].to_pylist()]
    other = mining.mine(reordered, MatrixTeacher(scores[order]), method, **ask)
    assert sorted(rows_of(whole)) == sorted(rows_of(other))
    one = data.select(["q0"])
    alone = mining.mine(one, MatrixTeacher(scores[:1]), method, **ask)
    assert rows_of(alone) == [row for row in rows_of(whole) if row[0] == "q0"]


@examples(60)
@given(problems(), st.sampled_from([NaiveTopK(), TopKShifted(1), TopKPercPos(0.9)]))
def test_samples_come_from_the_first_k_of_the_method(problem, method):
    data, scores = problem
    first = rows_of(mining.mine(data, MatrixTeacher(scores), method, 6, progress=False))
    for sampling in (SampledTopK(6), Top1PlusSampled(6)):
        table = mining.mine(data, MatrixTeacher(scores), method, 3, sampling, progress=False)
        drawn = rows_of(table)
        assert set(drawn) <= set(first)
        assert len(set(drawn)) == len(drawn)
        for pair in {row[:2] for row in first}:
            possible = sum(row[:2] == pair for row in first)
            assert sum(row[:2] == pair for row in drawn) == min(3, possible)
            if isinstance(sampling, Top1PlusSampled):
                best = next(row for row in first if row[:2] == pair)
                assert best in drawn


@pytest.mark.parametrize("spare", [0, 2, 64])
@pytest.mark.parametrize("sampling", [TopK(), SampledTopK(4)], ids=str)
def test_a_sweep_equals_its_methods_one_by_one(monkeypatch, spare, sampling):
    monkeypatch.setattr(mining, "SPARE", spare)
    _check_a_sweep(sampling)


@examples(40)
@given(problem=problems(), num=st.integers(1, 4))
def _check_a_sweep(sampling, problem, num):
    data, scores = problem
    methods = [TopKPercPos(0.2), RandomNegatives(), *METHODS, TopKMarginPos(0.9)]
    ask = {"num_negatives": num, "sampling": sampling, "seed": 1, "progress": False}
    tables = mining.sweep(data, MatrixTeacher(scores), methods, **ask)
    for method, table in zip(methods, tables, strict=True):
        assert table.equals(mining.mine(data, MatrixTeacher(scores), method, **ask))
        assert negatives.provenance(table)["method"] == method.record


def test_random_rows_are_uniform_distinct_and_allowed():
    size, banned = 6, np.array([1, 4])
    keys = np.arange(20_000, dtype=np.uint64)
    rows = draw_rows(keys, size, 2, [banned] * len(keys))
    assert (rows[:, 0] != rows[:, 1]).all()
    counts = np.bincount(rows.ravel(), minlength=size)
    assert counts[banned].sum() == 0
    expected = rows.size / 4
    assert (((counts - expected) ** 2 / expected)[[0, 2, 3, 5]]).sum() < 16.3  # chi², p = 0.001
    ordered_pairs = np.unique(rows, axis=0, return_counts=True)[1]
    assert len(ordered_pairs) == 12
    assert (abs(ordered_pairs - len(keys) / 12) < 5 * np.sqrt(len(keys) / 12)).all()


def test_all_that_is_left_is_drawn():
    keys = np.arange(50, dtype=np.uint64)
    rows = draw_rows(keys, 40, 39, [np.array([7])] * len(keys))
    assert (np.sort(rows, 1) == np.delete(np.arange(40), 7)).all()
    rows = draw_rows(keys, 3, 5, [np.zeros(0, int)] * len(keys))
    assert (np.sort(rows, 1) == [-1, -1, 0, 1, 2]).all()


def test_the_draw_is_a_softmax_over_the_scores():
    draws = 4000  # a query's draw depends on its id
    passages = [f"passage number {i}" for i in range(5)]
    row = np.array([0.0, 3.0, 2.0, 1.0, 0.0], np.float32)
    data = dataset(passages, [f"question {i}" for i in range(draws)], [[0]] * draws)
    table = mining.mine(
        data, MatrixTeacher(np.tile(row, (draws, 1))), NaiveTopK(), 1, SampledTopK(4), 0,
        progress=False, exclude=[np.array([0])] * draws,
    )  # fmt: skip
    counts = np.bincount([int(name[1:]) for name in table["negative_id"].to_pylist()], minlength=5)
    weights = np.exp(row[1:]) / np.exp(row[1:]).sum()
    np.testing.assert_allclose(counts[1:] / draws, weights, atol=0.03)


def test_near_identical_passages_are_no_negatives():
    text = "the tower was finished in the year 1889 and stands on the champ de mars in paris france"
    passages = [text, text.replace("1889", "1887"), text.upper() + "!", "something else entirely"]
    scores = np.array([[0.9, 0.8, 0.8, 0.1]], np.float32)
    data = dataset(passages, ["when was it finished"], [[0]])
    strict = mining.mine(data, MatrixTeacher(scores), NaiveTopK(), 3, near_duplicates=0.5,
                         progress=False)  # fmt: skip
    assert strict["negative_id"].to_pylist() == ["p3"]
    same_text = mining.mine(data, MatrixTeacher(scores), NaiveTopK(), 3, near_duplicates=None,
                            progress=False)  # fmt: skip
    assert same_text["negative_id"].to_pylist() == ["p1", "p3"]


def test_a_negative_positive_score_is_taken_literally_with_a_warning(caplog):
    scores = np.array([[-0.4, -0.39, -0.41, -0.5]], np.float32)
    data = dataset([f"passage {i}" for i in range(4)], ["question"], [[0]])
    ask = {"near_duplicates": None, "progress": False}
    literal = mining.mine(data, MatrixTeacher(scores), TopKPercPos(0.95), **ask)
    assert literal["negative_id"].to_pylist() == ["p1", "p2", "p3"]  # -0.39 beats the positive
    assert "1 of 1 positives score below 0" in caplog.text
    safe = mining.mine(
        data, MatrixTeacher(scores), TopKPercPos(0.95), negative_positives="safe", **ask
    )
    assert safe["negative_id"].to_pylist() == ["p3"]
    assert negatives.provenance(literal)["positives_below_zero"] == 1


def test_every_positive_has_its_own_ceiling():
    scores = np.array([[0.9, 0.5, 0.7, 0.4]], np.float32)
    data = dataset([f"passage {i}" for i in range(4)], ["question"], [[0, 1]])
    ask = {"near_duplicates": None, "progress": False}
    table = mining.mine(data, MatrixTeacher(scores), TopKMarginPos(0.05), **ask)
    assert [row[1:3] for row in rows_of(table)] == [("p0", "p2"), ("p0", "p3"), ("p1", "p3")]
    lowest = mining.mine(
        data, MatrixTeacher(scores), TopKMarginPos(0.05), ceiling_positive="lowest", **ask
    )
    assert [row[1:3] for row in rows_of(lowest)] == [("p0", "p3"), ("p1", "p3")]


def test_a_share_is_recorded_as_it_was_given():
    assert str(TopKPercPos(0.945)) == "TopK-PercPos 94.5%"
    assert TopKPercPos(0.945).record["parameters"] == {"perc": 0.945}


def test_a_table_survives_the_disk(tmp_path):
    scores = np.array([[0.9, 0.5, 0.7, 0.4]], np.float32)
    data = dataset([f"passage {i}" for i in range(4)], ["question"], [[0]])
    table = mining.mine(data, MatrixTeacher(scores), NaiveTopK(), progress=False)
    negatives.save(table, tmp_path / "negatives.parquet")
    back = negatives.load(tmp_path / "negatives.parquet")
    assert back.equals(table)
    assert negatives.provenance(back) == negatives.provenance(table)
    assert [p.name for p in tmp_path.iterdir()] == ["negatives.parquet"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, t: mining.mine(d, t, NaiveTopK(), 0), "num_negatives is 0"),
        (lambda d, t: mining.mine(d, t, NaiveTopK(), 4, SampledTopK(3)), "k is smaller"),
        (lambda d, t: mining.mine(dataset(["a"], ["b"], [[]]), t, NaiveTopK()), "nothing to mine"),
        (lambda d, t: TopKShifted(-1), "n is -1"),
        (lambda d, t: TopKPercPos(float("nan")), "perc is nan"),
        (lambda d, t: TopKPercPos(-0.5), "perc is -0.5"),
        (lambda d, t: TopKPercPos(95), "perc is 95, expected a share"),
        (
            lambda d, t: mining.mine(d, t, NaiveTopK(), ceiling_positive="Lowest"),
            "ceiling_positive is 'Lowest', expected one of own, lowest",
        ),
        (
            lambda d, t: mining.mine(d, t, NaiveTopK(), negative_positives="sfae"),
            "negative_positives is 'sfae', expected one of literal, safe",
        ),
        (lambda d, t: TopKAbs("0.7"), "threshold is '0.7'"),
    ],
)
def test_bad_input_is_named(call, message):
    data = dataset(["one passage", "two passages"], ["question"], [[0]])
    with pytest.raises(NvretError, match=message):
        call(data, MatrixTeacher(np.array([[0.5, 0.4]], np.float32)))
