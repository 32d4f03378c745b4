"""Intervals against closed forms, a plain-loop oracle and the coverage that they promise."""

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from nvret.analysis.statistics import (
    Interval,
    _pigeonhole,
    holm,
    mean_interval,
    p_value,
    paired_difference,
    score_matrix,
    verdict,
)
from nvret.utils.errors import NvretError

METHODS = ("t", "bootstrap")
unit = st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 3))
matrices = st.tuples(st.integers(1, 4), st.integers(2, 30)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=unit)
)


def crossed(rng, seeds, queries, by_seed, by_query, rest):
    """Scores of true mean 0 with the given standard deviations."""
    return (
        by_seed * rng.standard_normal((seeds, 1))
        + by_query * rng.standard_normal((1, queries))
        + rest * rng.standard_normal((seeds, queries))
    )


@pytest.mark.parametrize("method", METHODS)
@given(scores=matrices, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_interval_moves_with_the_scores(method, scores, shift, scale):
    one = mean_interval(scores, method=method, resamples=100)
    assert one.value == pytest.approx(scores.mean())
    if method == "t":  # percentiles of few queries may leave the mean out
        assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    two = mean_interval(scale * scores + shift, method=method, resamples=100)
    assert two == pytest.approx([scale * part + shift for part in one], abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(scores=matrices, order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_difference_is_antisymmetric_and_null_on_itself(method, scores, order):
    other = np.array(order.sample(list(scores.ravel()), scores.size)).reshape(scores.shape)
    ab = paired_difference(scores, other, method=method, resamples=100)
    ba = paired_difference(other, scores, method=method, resamples=100)
    assert ab == pytest.approx([-ba.value, -ba.high, -ba.low], abs=1e-9)
    assert paired_difference(scores, scores, method=method, resamples=100) == (0, 0, 0)
    assert p_value(scores, scores, method=method, resamples=100) == 1


@given(scores=matrices)
@settings(max_examples=60, deadline=None)
def test_order_of_seeds_and_queries_does_not_matter_to_t(scores):
    same = mean_interval(scores[::-1, ::-1])
    assert same == pytest.approx(mean_interval(scores), abs=1e-9)


@given(scores=matrices)
@settings(max_examples=60, deadline=None)
def test_higher_level_is_wider(scores):
    narrow, wide = (mean_interval(scores, level) for level in (0.8, 0.99))
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


def test_one_seed_is_students_t_over_queries():
    scores = np.random.default_rng(0).random(50)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    interval = mean_interval(scores[None])
    assert interval[1:] == pytest.approx([expected.low, expected.high])
    assert p_value(scores[None], np.zeros((1, 50))) == pytest.approx(
        stats.ttest_1samp(scores, 0).pvalue
    )


def test_seeds_alone_are_students_t_over_seeds():
    by_seed = np.array([0.5, 0.53, 0.58])
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    interval = mean_interval(np.repeat(by_seed[:, None], 1000, axis=1))
    assert interval[1:] == pytest.approx([expected.low, expected.high])


def test_bootstrap_draws_seeds_and_queries_each_on_their_own():
    """The spread of the replicates is Owen's: both spreads show, shrunk by (n - 1) / n."""
    rng = np.random.default_rng(0)
    scores = crossed(rng, 4, 60, 0.2, 0.5, 0.3)
    replicates = _pigeonhole([scores], 40_000, rng)
    loops = np.empty(4000)
    for row in range(len(loops)):
        picked = scores[rng.integers(4, size=4)][:, rng.integers(60, size=60)]
        loops[row] = picked.mean()
    assert replicates.mean() == pytest.approx(scores.mean(), abs=0.003)
    assert replicates.std() == pytest.approx(loops.std(), rel=0.05)
    assert np.quantile(replicates, [0.025, 0.975]) == pytest.approx(
        np.quantile(loops, [0.025, 0.975]), abs=0.02
    )


@pytest.mark.parametrize("method", METHODS)
def test_several_sets_share_the_seeds_and_weigh_the_same(method):
    rng = np.random.default_rng(0)
    small, large = rng.random((3, 50)), rng.random((3, 800)) + 1
    interval = mean_interval([small, large], method=method)
    assert interval.value == pytest.approx((small.mean() + large.mean()) / 2)
    same = mean_interval([small], method=method)
    assert same == mean_interval(small, method=method) == mean_interval(small[None], method=method)
    # A seed that is lucky on both sets is lucky on their mean: its spread must not average out
    lucky = np.array([-0.1, 0.0, 0.1])[:, None]
    one = mean_interval(np.zeros((3, 500)) + lucky, method=method)
    two = mean_interval([np.zeros((3, 500)) + lucky, np.zeros((3, 90)) + lucky], method=method)
    assert two == pytest.approx(one)


def test_a_system_without_seeds_is_compared_with_every_run():
    rng = np.random.default_rng(0)
    runs, bm25 = rng.random((3, 40)), rng.random((1, 40))
    assert paired_difference(runs, bm25) == paired_difference(runs, np.repeat(bm25, 3, axis=0))


def coverage(method, *spread, runs=300, seeds=3):
    rng = np.random.default_rng(20)
    hits = 0
    for run in range(runs):
        scores = crossed(rng, seeds, 100, *spread)
        interval = mean_interval(scores, method=method, resamples=300, seed=run)
        hits += interval.low <= 0 <= interval.high
    return hits / runs


@pytest.mark.parametrize(
    "spread", [(0.01, 0.3, 0.1), (0.02, 0.1, 0.1), (0.0, 0.3, 0.3), (0.02, 0.0, 0.0)]
)
def test_t_covers_what_it_promises(spread):
    assert 0.91 <= coverage("t", *spread) <= 1


def test_bootstrap_covers_over_queries_but_not_over_few_seeds():
    assert coverage("bootstrap", 0.01, 0.3, 0.1) >= 0.91
    assert coverage("bootstrap", 0.02, 0.0, 0.0) < 0.85  # as documented: why "t" is the default


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    values = [p_value(crossed(rng, 3, 100, 0.01, 0.2, 0.1), np.zeros((1, 100))) for _ in range(500)]
    assert np.mean(np.array(values) < 0.05) <= 0.08


def test_bootstrap_is_deterministic_and_fast():
    scores = np.random.default_rng(0).random((3, 5000))
    start = time.perf_counter()
    first = mean_interval(scores, method="bootstrap", resamples=2000)
    assert time.perf_counter() - start < 2  # 0.13 s on an idle core
    assert first == mean_interval(scores, method="bootstrap", resamples=2000)
    assert first != mean_interval(scores, method="bootstrap", resamples=2000, seed=1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_matches_the_step_down_procedure(values):
    adjusted = holm(values)
    assert np.all(adjusted >= values)
    assert np.all(adjusted <= 1)
    for alpha in (0.01, 0.05, 0.2):
        rejected, order = set(), np.argsort(values, kind="stable")
        for step, place in enumerate(order):
            if values[place] * (len(values) - step) > alpha:
                break
            rejected.add(place)
        assert rejected == set(np.flatnonzero(adjusted <= alpha))


@pytest.mark.parametrize(
    ("low", "high", "sign", "margin", "expected"),
    [
        (0.01, 0.03, 1, 0, "reproduced"),
        (0.01, 0.03, -1, 0, "not reproduced"),
        (-0.03, -0.01, -1, 0, "reproduced"),
        (-0.01, 0.03, 1, 0, "undecided"),
        (0.0, 0.03, 1, 0, "undecided"),
        (-0.002, 0.002, 1, 0.005, "not reproduced"),
        (-0.002, 0.002, -1, 0.005, "not reproduced"),
        (0.001, 0.002, 1, 0.005, "reproduced"),
        (0.0, 0.0, 1, 0, "undecided"),
    ],
)
def test_verdict(low, high, sign, margin, expected):
    assert verdict(Interval((low + high) / 2, low, high), sign, margin=margin) == expected


def long_table(values, seeds=(7, 8), dataset="nq"):
    rows = [
        {"method": m, "seed": s, "dataset": dataset, "query_id": q, "score": values[i, j, k]}
        for i, m in enumerate("ab")
        for j, s in enumerate(seeds)
        for k, q in enumerate(("q1", "q2", "q3"))
    ]
    return pa.Table.from_pylist(rows)


def test_score_matrix_takes_rows_in_any_order():
    values = np.random.default_rng(0).random((2, 2, 3))
    other = long_table(values + 1, dataset="quora")
    table = pa.concat_tables([other, long_table(values)])
    mixed = table.take(np.random.default_rng(1).permutation(table.num_rows))
    found = score_matrix(mixed, "nq", methods=["b", "a"])
    assert found.methods == ["b", "a"]
    seeds = [found.seeds.index(seed) for seed in (7, 8)]
    queries = [found.query_ids.index(query) for query in ("q1", "q2", "q3")]
    np.testing.assert_array_equal(found.values[:, seeds][:, :, queries], values[::-1])
    assert score_matrix(table, "nq").methods == ["a", "b"]
    frame = table.to_pandas().rename(columns={"score": "ndcg_at_10"})
    same = score_matrix(frame, "nq", score="ndcg_at_10")
    np.testing.assert_array_equal(same.values, values)


def test_bad_tables_are_named():
    table = long_table(np.zeros((2, 2, 3)))
    with pytest.raises(NvretError, match="method 'b', seed 8, query 'q3' has 0 scores"):
        score_matrix(table.slice(0, 11), "nq")
    with pytest.raises(NvretError, match="'a', seed 7, query 'q1' has 2 scores"):
        score_matrix(pa.concat_tables([table, table.slice(0, 1)]), "nq")
    with pytest.raises(NvretError, match="no data set 'msmarco', only nq"):
        score_matrix(table, "msmarco")
    with pytest.raises(NvretError, match="no column 'score'"):
        score_matrix(table.drop(["score"]), "nq")
    with pytest.raises(NvretError, match="method 'c'"):
        score_matrix(table, "nq", methods=["a", "c"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.zeros((3, 1))), "2 or more queries"),
        (lambda: mean_interval(np.zeros(3)), "expected"),
        (lambda: mean_interval(np.array([[0.1, np.nan]])), "query column 1 is not finite"),
        (lambda: mean_interval([np.zeros((2, 5)), np.zeros((3, 5))]), "2 and 3 seeds"),
        (lambda: mean_interval([]), "no test set"),
        (lambda: mean_interval(np.zeros((2, 5)), 95), "level is 95"),
        (lambda: mean_interval(np.zeros((2, 5)), method="z"), "method is 'z'"),
        (lambda: mean_interval(np.zeros((2, 5)), method="bootstrap", resamples=9), "resamples"),
        (lambda: paired_difference(np.zeros((2, 5)), np.zeros((2, 6))), "must match"),
        (lambda: paired_difference(np.zeros((2, 5)), np.zeros((3, 5))), "must match"),
        (lambda: paired_difference([np.zeros((2, 5))] * 2, np.zeros((2, 5))), "paired"),
        (lambda: holm([0.1, 2.0]), "p-values"),
        (lambda: verdict(Interval(0, 0, 0), 2), "sign"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(NvretError, match=message):
        call()
