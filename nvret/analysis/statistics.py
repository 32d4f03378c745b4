"""How sure is a mean over queries and seeds, a difference of two such means, or a rate?

All intervals are of 95 %. Scores have two crossed sources of chance, the seed and the query; a rate
has one, the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import pandas as pd

Scores = np.ndarray | Sequence[np.ndarray]
UPPER = 0.975  # the quantile at which a 95 % interval ends
POWER = 0.8  # the chance of finding a difference that an experiment is said to detect
Verdict = Literal[
    "confirmed", "same sign, smaller", "no effect", "reversed", "undecided", "not a test"
]


class Interval(NamedTuple):
    """A mean, difference or rate with its confidence interval; in the unit of the scores."""

    value: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A mean with its standard error and the degrees of freedom of Student's t."""

    value: float
    error: float
    degrees: float

    @property
    def interval(self) -> Interval:
        from scipy.special import stdtrit

        reach = float(stdtrit(self.degrees, UPPER)) * self.error if self.error > 0 else 0.0
        return Interval(self.value, self.value - reach, self.value + reach)

    @property
    def p(self) -> float:
        """Two-sided, of "the true mean is 0"; what the interval inverts."""
        from scipy.special import stdtr

        if self.error <= 0:
            return float(self.value == 0)
        return 2 * float(stdtr(self.degrees, -abs(self.value) / self.error))

    @property
    def detectable(self) -> float:
        """The smallest true mean that such scores tell from 0 four times in five.

        That is (t at 0.975 + t at 0.8) standard errors, at a two-sided level of 5 %.
        """
        from scipy.special import stdtrit

        if self.error <= 0:
            return 0.0
        return float(sum(stdtrit(self.degrees, q) for q in (UPPER, POWER))) * self.error


def estimate(scores: Scores) -> Estimate:
    """The mean over seeds and queries, with what its interval and p-value need.

    Two-way random effects, score = mean + seed + query + rest, and Student's t with Satterthwaite's
    degrees of freedom (1946). The variance of the seeds' means and that of the queries' means both
    hold the rest, which is therefore taken off once; the sum is kept at least as large as the
    larger of the two. A bootstrap is no substitute: three seeds show only two thirds of their
    variance, and percentiles know no t quantile (Owen 2007, arXiv 0712.1111). A single seed says
    nothing of other seeds: the interval is then one over queries, for that run.

    Args:
        scores: (S, Q) of one test set; or a list of (S, Q_i), one a test set, for the mean of the
            sets' means. The sets are given, not drawn; row s is the same run in all of them.
    Raises:
        NvretError: fewer than two queries, NaN, sets that differ in their number of seeds.
    """
    sets = _test_sets(scores, "scores")
    num_seeds, weight = len(sets[0]), 1 / len(sets) ** 2
    value = float(np.mean([scores.mean() for scores in sets]))
    # Variance components of the mean, and their degrees of freedom
    parts = [weight * scores.mean(0).var(ddof=1) / scores.shape[1] for scores in sets]
    freedom = [scores.shape[1] - 1 for scores in sets]
    from_queries, from_seeds, rest = sum(parts), 0.0, 0.0
    if num_seeds > 1:
        for scores in sets:
            left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
            mean_square = (left**2).sum() / ((num_seeds - 1) * (scores.shape[1] - 1))
            rest += weight * mean_square / scores.size
        by_seed = np.mean([scores.mean(1) for scores in sets], axis=0)
        from_seeds = float(by_seed.var(ddof=1) / num_seeds)
        parts.append(from_seeds)
        freedom.append(num_seeds - 1)
    variance = max(from_queries + from_seeds - rest, from_queries, from_seeds)
    if variance <= 0:
        return Estimate(value, 0.0, 1.0)
    degrees = variance**2 / sum(p**2 / d for p, d in zip(parts, freedom, strict=True))
    return Estimate(value, float(np.sqrt(variance)), max(degrees, min(freedom)))


def mean_interval(scores: Scores) -> Interval:
    """The mean over seeds and queries; arguments as of `estimate`.

    >>> mean_interval(np.array([[0.25, 0.5, 0.75], [0.25, 0.5, 0.75]])).value
    0.5
    """
    return estimate(scores).interval


def paired_difference(a: Scores, b: Scores) -> Interval:
    """The mean of a - b, paired by seed and by query.

    Args:
        a, b: as in `estimate`, with the same queries and seeds in the same order. A system
            without a seed (BM25, a model that is not trained here) has one row, which is compared
            with each row of the other.

    >>> low_noise = np.array([[0.50, 0.70, 0.30], [0.52, 0.72, 0.32]])
    >>> paired_difference(low_noise + 0.1, low_noise).low > 0.09
    True
    """
    left, right = _test_sets(a, "a"), _test_sets(b, "b")
    if len(left) != len(right):
        raise NvretError(f"a has {len(left)} test sets and b has {len(right)}: cannot be paired")
    for x, y in zip(left, right, strict=True):
        if x.shape[1] != y.shape[1] or (len(x) != len(y) and 1 not in (len(x), len(y))):
            raise NvretError(f"a has shape {x.shape} and b {y.shape}: (seeds, queries) must match")
    return estimate([x - y for x, y in zip(left, right, strict=True)]).interval


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Least squares of y on x; each pair is one unit, so that n - 2 degrees of freedom are left.

    Raises:
        NvretError: fewer than three pairs, or x is the same everywhere.

    >>> slope([0.0, 1.0, 2.0, 3.0], [0.0, 1.1, 1.9, 3.0]).interval.low > 0.7
    True
    """
    from scipy.stats import linregress

    if len(x) < 3 or np.ptp(x) == 0:
        raise NvretError(f"{len(x)} pairs with x from {min(x)} to {max(x)}: expected 3 that differ")
    line = linregress(x, y)
    return Estimate(float(line.slope), float(line.stderr), len(x) - 2)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """(n,) Holm's adjusted p-values (1979), in the same order: reject where they are at most alpha.

    The chance of any false rejection stays below alpha, however the comparisons depend.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise NvretError(f"p-values are {p_values!r}, expected numbers in [0, 1]")
    order = values.argsort(kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted[order.argsort()]


def verdict(interval: Interval, margin: float, effect: float | None = None) -> Verdict:
    """What an interval says of the claim that a difference is above 0.

    Args:
        margin: the smallest difference that matters.
        effect: the difference that was published, above 0; None where there is no number.
    Returns:
        the first that holds: "not a test" where the interval's half-width is above the effect (an
        effect below the margin: above the margin); "confirmed" where the interval lies above 0 and
        the difference reaches half of the effect (without an effect: the margin); "same sign,
        smaller" where it does not reach that; "no effect" where the interval lies within ± margin;
        "reversed" where it lies below 0; or else "undecided". NaN compares as neither side, and is
        undecided.

    >>> verdict(Interval(0.03, 0.02, 0.04), margin=0.005, effect=0.045)
    'confirmed'
    >>> verdict(Interval(0.02, 0.01, 0.03), margin=0.005, effect=0.045)
    'same sign, smaller'
    >>> verdict(Interval(0.001, -0.002, 0.004), margin=0.005, effect=0.045)
    'no effect'
    """
    if effect is not None and not effect > 0:
        raise NvretError(f"the published effect is {effect:g}, expected a difference above 0")
    if effect is not None and (interval.high - interval.low) / 2 > max(effect, margin):
        return "not a test"
    if interval.low > 0:
        reached = interval.value >= goal(margin, effect)
        return "confirmed" if reached else "same sign, smaller"
    if -margin <= interval.low and interval.high <= margin:
        return "no effect"
    return "reversed" if interval.high < 0 else "undecided"


def goal(margin: float, effect: float | None = None) -> float:
    """The difference that a claim has to reach: half of the published one, or else the margin."""
    return margin if effect is None or np.isnan(effect) else effect / 2


def verdict_on_bound(interval: Interval, bound: float) -> Verdict:
    """What an interval says of the claim that a difference lies above a bound other than 0.

    Such a claim has no size to reach: "not worse" is true of a tie, too.

    >>> verdict_on_bound(Interval(0.0, -0.004, 0.004), bound=-0.005)
    'confirmed'
    """
    if interval.low > bound:
        return "confirmed"
    return "reversed" if interval.high < bound else "undecided"


def rate(counts: pd.DataFrame) -> Interval:
    """Share of the negatives that are known to be false, with its interval over queries.

    Args:
        counts: columns query_id, mined, false (`nvret.analysis.audit.false_negatives`).
    Returns:
        a share in [0, 1]; NaN in [0, 1] where nothing was mined.

    >>> import pandas as pd
    >>> counts = pd.DataFrame({"query_id": list("abcd"), "mined": 4, "false": [1, 0, 0, 1]})
    >>> rate(counts).value
    0.125
    """
    return _rate(counts)[0]


def reduction(counts: pd.DataFrame, reference: pd.DataFrame) -> Interval:
    """How much lower the rate is than the reference's: 1 - rate / rate of the reference.

    Paired by query: the interval comes from the limits of both rates and the correlation of their
    residuals (Donner and Zou 2012, Stat. Methods Med. Res. 21). The usual linearised logarithm of
    the ratio is much too narrow where few negatives are false.

    Returns:
        a share, below 0 where there are more of them; NaN where the reference has none. The low
        end is -inf where the reference's rate may be 0.
    Raises:
        NvretError: the queries differ.
    """
    sizes = [table["query_id"].nunique() for table in (counts, reference)]
    if set(counts["query_id"]) != set(reference["query_id"]):
        raise NvretError(f"rates of other queries ({sizes[0]}, {sizes[1]}): they cannot be paired")
    (p, p_low, p_high), p_residuals = _rate(reference)
    (q, q_low, q_high), q_residuals = _rate(counts)
    if not p > 0:
        return Interval(np.nan, -np.inf, 1.0)
    scale = np.sqrt((p_residuals**2).sum() * (q_residuals**2).sum())
    r = float((p_residuals * q_residuals).sum() / scale) if scale > 0 else 0.0

    def limit(q_end: float, p_end: float, sign: int) -> float:
        bottom = p_end * (2 * p - p_end)
        middle = p * q - r * abs(q - q_end) * abs(p_end - p)
        root = np.sqrt(max(middle**2 - q_end * (2 * q - q_end) * bottom, 0.0))
        return (middle + sign * root) / bottom if bottom else sign * np.inf

    most = limit(q_high, p_low, 1) if p_low > 0 else np.inf
    return Interval(1 - q / p, float(1 - most), float(1 - max(limit(q_low, p_high, -1), 0.0)))


def _rate(counts: pd.DataFrame) -> tuple[Interval, np.ndarray]:
    """The rate; (Q,) linearised residuals, whose sum of squares is the rate's variance.

    The negatives of one query resemble each other, and rates near 0 are common. The variance is
    that of a ratio of sums over queries (Cochran 1977, section 6.3); the interval is Wilson's for
    as many independent negatives as would have it (Korn and Graubard 1998, Survey Methodology 24).
    """
    from scipy.special import stdtrit

    totals = counts.groupby("query_id")[["mined", "false"]].sum().sort_index()
    mined, false = totals["mined"].to_numpy(float), totals["false"].to_numpy(float)
    negatives, queries = mined.sum(), int((mined > 0).sum())
    if not negatives:
        return Interval(np.nan, 0.0, 1.0), mined
    p = float(false.sum() / negatives)
    scale = np.sqrt(queries / max(queries - 1, 1)) / negatives
    residuals = scale * (false - p * mined)
    variance = float((residuals**2).sum())
    # Without an event, or with events alone, nothing tells how much the negatives of a query
    # resemble each other: count a query once
    size = min(p * (1 - p) / variance, negatives) if variance > 0 else queries
    t = float(stdtrit(max(queries - 1, 1), UPPER))
    centre, share = (p + t**2 / (2 * size)) / (1 + t**2 / size), t / (1 + t**2 / size)
    reach = share * np.sqrt(p * (1 - p) / size + t**2 / (4 * size**2))
    low, high = max(0.0, float(centre - reach)), min(1.0, float(centre + reach))
    return Interval(p, min(low, p), max(high, p)), residuals


def _test_sets(scores: Scores, name: str) -> list[np.ndarray]:
    sets = [scores] if isinstance(scores, np.ndarray) and scores.ndim == 2 else list(scores)
    sets = [np.asarray(one, dtype=np.float64) for one in sets]
    if not sets:
        raise NvretError(f"{name} holds no test set")
    for one in sets:
        if one.ndim != 2 or one.shape[0] < 1 or one.shape[1] < 2:
            raise NvretError(
                f"{name} has shape {one.shape}, expected (seeds, queries) with 2 or more queries"
            )
        if not np.isfinite(one).all():
            row, column = np.argwhere(~np.isfinite(one))[0]
            raise NvretError(f"{name}: seed row {row}, query column {column} is not finite")
        if len(one) != len(sets[0]):
            raise NvretError(f"{name}: test sets have {len(sets[0])} and {len(one)} seeds")
    return sets
