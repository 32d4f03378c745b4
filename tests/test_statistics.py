"""Intervals against closed forms and the coverage that they promise; adjusted p-values."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from helpers import examples
from nvret.analysis.statistics import (
    Interval,
    estimate,
    holm,
    mean_interval,
    paired_difference,
    rate,
    reduction,
    slope,
    verdict,
    verdict_on_bound,
)
from nvret.utils.errors import NvretError

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


@given(scores=matrices, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@examples(60)
def test_interval_moves_with_the_scores(scores, shift, scale):
    one = mean_interval(scores)
    assert one.value == pytest.approx(scores.mean())
    assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    two = mean_interval(scale * scores + shift)
    assert two == pytest.approx([scale * part + shift for part in one], abs=1e-9)


@given(scores=matrices, order=st.randoms(use_true_random=False))
@examples(40)
def test_difference_is_antisymmetric_and_null_on_itself(scores, order):
    other = np.array(order.sample(list(scores.ravel()), scores.size)).reshape(scores.shape)
    ab = paired_difference(scores, other)
    ba = paired_difference(other, scores)
    assert ab == pytest.approx([-ba.value, -ba.high, -ba.low], abs=1e-9)
    assert paired_difference(scores, scores) == (0, 0, 0)
    assert estimate(0 * scores).p == 1


@given(scores=matrices)
@examples(60)
def test_order_of_seeds_and_queries_does_not_matter_to_t(scores):
    same = mean_interval(scores[::-1, ::-1])
    assert same == pytest.approx(mean_interval(scores), abs=1e-9)


def test_one_seed_is_students_t_over_queries():
    scores = np.random.default_rng(0).random(50)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    interval = mean_interval(scores[None])
    assert interval[1:] == pytest.approx([expected.low, expected.high])
    assert estimate(scores[None]).p == pytest.approx(stats.ttest_1samp(scores, 0).pvalue)


def test_seeds_alone_are_students_t_over_seeds():
    by_seed = np.array([0.5, 0.53, 0.58])
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    interval = mean_interval(np.repeat(by_seed[:, None], 1000, axis=1))
    assert interval[1:] == pytest.approx([expected.low, expected.high])


def test_several_sets_share_the_seeds_and_weigh_the_same():
    rng = np.random.default_rng(0)
    small, large = rng.random((3, 50)), rng.random((3, 800)) + 1
    interval = mean_interval([small, large])
    assert interval.value == pytest.approx((small.mean() + large.mean()) / 2)
    same = mean_interval([small])
    assert same == mean_interval(small) == mean_interval(small[None])
    # A seed that is lucky on both sets is lucky on their mean: its spread must not average out
    lucky = np.array([-0.1, 0.0, 0.1])[:, None]
    one = mean_interval(np.zeros((3, 500)) + lucky)
    two = mean_interval([np.zeros((3, 500)) + lucky, np.zeros((3, 90)) + lucky])
    assert two == pytest.approx(one)


def test_a_system_without_seeds_is_compared_with_every_run():
    rng = np.random.default_rng(0)
    runs, bm25 = rng.random((3, 40)), rng.random((1, 40))
    assert paired_difference(runs, bm25) == paired_difference(runs, np.repeat(bm25, 3, axis=0))


@pytest.mark.parametrize(
    "spread", [(0.01, 0.3, 0.1), (0.02, 0.1, 0.1), (0.0, 0.3, 0.3), (0.02, 0.0, 0.0)]
)
def test_intervals_cover_what_they_promise(spread):
    rng = np.random.default_rng(20)
    intervals = [mean_interval(crossed(rng, 3, 100, *spread)) for _ in range(300)]
    assert np.mean([interval.low <= 0 <= interval.high for interval in intervals]) >= 0.91


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    values = [estimate(crossed(rng, 3, 100, 0.01, 0.2, 0.1)).p for _ in range(500)]
    assert np.mean(np.array(values) < 0.05) <= 0.08


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
    ("low", "high", "effect", "expected"),
    [
        (0.02, 0.04, 0.045, "confirmed"),
        (0.0125, 0.0325, 0.045, "confirmed"),  # its middle is just half of the effect
        (0.0124, 0.0324, 0.045, "same sign, smaller"),
        (0.001, 0.011, None, "confirmed"),
        (0.001, 0.004, None, "same sign, smaller"),
        (0.0, 0.03, None, "undecided"),
        (-0.005, 0.005, None, "no effect"),
        (-0.004, -0.001, None, "no effect"),  # below 0, and by nothing that matters
        (-0.006, -0.001, None, "reversed"),
        (-0.006, 0.004, None, "undecided"),
        (0.0, 0.0, None, "no effect"),
        (0.01, 0.031, 0.01, "not a test"),  # even where it lies above 0
        (0.01, 0.029, 0.01, "confirmed"),
        (np.nan, np.nan, None, "undecided"),
    ],
)
def test_verdict(low, high, effect, expected):
    assert verdict(Interval((low + high) / 2, low, high), 0.005, effect) == expected


@pytest.mark.parametrize("effect", [0.0, -0.001])
def test_an_effect_that_says_nothing_for_the_claim_is_an_error(effect):
    with pytest.raises(NvretError, match="above 0"):
        verdict(Interval(0.0, -0.1, 0.1), 0.005, effect)


def test_verdict_on_a_bound():
    ends = [(-0.004, 0.1), (-0.02, -0.006), (-0.02, -0.005), (-0.005, 0.1)]
    found = [verdict_on_bound(Interval(0, *end), -0.005) for end in ends]
    assert found == ["confirmed", "reversed", "undecided", "undecided"]


def test_what_is_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    spread = (0.01, 0.1, 0.1)
    size = np.mean([estimate(crossed(rng, 5, 200, *spread)).detectable for _ in range(100)])
    found = [mean_interval(size + crossed(rng, 5, 200, *spread)).low > 0 for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)
    assert estimate(np.zeros((3, 10))).detectable == 0


@given(pairs=st.lists(st.tuples(st.integers(-20, 20), unit), min_size=4, max_size=9,
                      unique_by=lambda pair: pair[0]))  # fmt: skip
@examples(40)
def test_slope_is_that_of_least_squares(pairs):
    x, y = np.array(pairs, float).T
    design = np.stack([np.ones_like(x), x], 1)
    (_, expected), rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(rest[0] / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    reach = stats.t.ppf(0.975, len(x) - 2) * error
    found = slope(x, y).interval
    assert found == pytest.approx((expected, expected - reach, expected + reach), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.zeros((3, 1))), "2 or more queries"),
        (lambda: mean_interval(np.zeros(3)), "expected"),
        (lambda: mean_interval(np.array([[0.1, np.nan]])), "query column 1 is not finite"),
        (lambda: mean_interval([np.zeros((2, 5)), np.zeros((3, 5))]), "2 and 3 seeds"),
        (lambda: mean_interval([]), "no test set"),
        (lambda: paired_difference(np.zeros((2, 5)), np.zeros((2, 6))), "must match"),
        (lambda: paired_difference(np.zeros((2, 5)), np.zeros((3, 5))), "must match"),
        (lambda: paired_difference([np.zeros((2, 5))] * 2, np.zeros((2, 5))), "paired"),
        (lambda: holm([0.1, 2.0]), "p-values"),
        (lambda: slope([1.0, 2.0], [1.0, 2.0]), "2 pairs"),
        (lambda: slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), "x from 1.0 to 1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(NvretError, match=message):
        call()


# rates of false negatives


def draw(rng, queries, share, alike):
    """Counts of a method and of one that keeps two in five of its false negatives."""
    chances = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), queries)
    mined = rng.integers(2, 5, queries)
    false = rng.binomial(mined, chances)
    first = pd.DataFrame({"query_id": np.arange(queries), "mined": mined, "false": false})
    return first, first.assign(false=rng.binomial(false, 0.4))


@pytest.mark.parametrize(
    ("queries", "share", "alike"),
    [
        pytest.param(200, 0.1, 0.3, marks=pytest.mark.thorough),
        (300, 0.01, 0.3),
        pytest.param(300, 0.003, 0.5, marks=pytest.mark.thorough),
    ],
)
def test_intervals_hold_the_truth_nineteen_times_in_twenty(queries, share, alike):
    rng = np.random.default_rng(0)
    inside = np.zeros(2)
    for _ in range(400):
        first, second = draw(rng, queries, share, alike)
        one, two = rate(first), reduction(second, first)
        inside += one.low <= share <= one.high, two.low <= 0.6 <= two.high
    assert (inside / 400 > 0.9).all()


def test_intervals_at_the_ends():
    none = pd.DataFrame({"query_id": range(100), "mined": 4, "false": 0})
    some = none.assign(false=[1] * 10 + [0] * 90)
    value, low, high = rate(none)
    assert (value, low) == (0, 0)
    assert 0.03 < high < 0.04  # Wilson's for 100, not for 400
    assert rate(none.assign(false=4)).low > 0.96
    assert np.isnan(rate(none.assign(mined=0)).value)
    fewer = reduction(none, some)
    assert (fewer.value, fewer.high) == (1, 1)
    assert -1 < fewer.low < 0.2  # ten events leave much open
    assert np.isnan(reduction(some, none).value)
    assert reduction(some, some).value == 0
    with pytest.raises(NvretError, match="cannot be paired"):
        reduction(some, none.iloc[:50])
    # the order of the rows is nothing
    assert reduction(none[::-1], some) == fewer
