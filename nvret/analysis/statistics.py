"""How sure is a mean over queries and seeds, and a difference of two such means?

A score has two sources of chance: the seed of the training run and the query. The two are crossed
(every run answers every query), so that the S · Q scores are far from independent: treating them
as such gives intervals that are much too narrow. Two answers, both for crossed data:

- ``"t"`` (default): the variance of a two-way random-effects layout, and Student's t with
  Satterthwaite's degrees of freedom. With three seeds whose spread dominates, that is a t with two
  degrees of freedom, whose quantile is 4.3 and not 1.96.
- ``"bootstrap"``: seeds and queries are drawn again, each on its own (the pigeonhole bootstrap).
  It takes the shape of the scores into account but, with few seeds, sees too little of their
  spread: S seeds show only (S - 1) / S of their variance, and percentiles know no t quantile. In
  the simulation in ``tests/test_statistics.py``, three seeds of dominating spread give "95 %"
  bootstrap intervals that hold the truth three times in four.

A single seed says nothing about the spread between seeds, under either method: the interval is
then one over queries, for that one run.

Source: Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111; Satterthwaite 1946; Holm 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["t", "bootstrap"]
Scores = np.ndarray | Sequence[np.ndarray]
CHUNK = 1 << 20  # resampled queries held at once


class Interval(NamedTuple):
    """A mean or a difference of means, with its confidence interval; in the unit of the scores."""

    value: float
    low: float
    high: float


class ScoreMatrix(NamedTuple):
    """The scores of several methods on one data set.

    methods: M names; seeds: S; query_ids: Q; values: (M, S, Q) float64.
    """

    methods: list[str]
    seeds: list[int]
    query_ids: list[str]
    values: np.ndarray


def mean_interval(
    scores: Scores,
    level: float = 0.95,
    *,
    method: Method = "t",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean over seeds and queries.

    Args:
        scores: (S, Q) of one test set; or a list of (S, Q_i), one a test set, for the mean of the
            sets' means: the sets are given, not drawn, and row s is the same run in all of them.
        level: share of such intervals that hold the true mean.
        method: "t" or "bootstrap"; see the module.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    Raises:
        NvretError: fewer than two queries, NaN, sets that differ in their number of seeds.

    >>> mean_interval(np.array([[0.25, 0.5, 0.75], [0.25, 0.5, 0.75]])).value
    0.5
    """
    interval, _ = _infer(_as_sets(scores, "scores"), level, method, resamples, seed)
    return interval


def paired_difference(
    a: Scores,
    b: Scores,
    level: float = 0.95,
    *,
    method: Method = "t",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of a - b, paired by seed and by query.

    Args:
        a: as in ``mean_interval``.
        b: the same queries, and the same seeds in the same order. A system that has no seed (BM25,
            a model that is not trained here) has one row, which is compared with each row of the
            other.
        level: as in ``mean_interval``.
        method: as in ``mean_interval``.
        resamples: as in ``mean_interval``.
        seed: as in ``mean_interval``.

    >>> low_noise = np.array([[0.50, 0.70, 0.30], [0.52, 0.72, 0.32]])
    >>> paired_difference(low_noise + 0.1, low_noise).low > 0.09
    True
    """
    interval, _ = _infer(_differences(a, b), level, method, resamples, seed)
    return interval


def p_value(
    a: Scores, b: Scores, *, method: Method = "t", resamples: int = 2000, seed: int = 0
) -> float:
    """Two-sided p-value of "a and b have the same mean", from what ``paired_difference`` inverts.

    >>> p_value(np.array([[0.0, 1.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 1.0, 0.0]]))
    1.0
    """
    return _infer(_differences(a, b), 0.95, method, resamples, seed)[1]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values: reject where they are at most alpha.

    The chance of one or more false rejections among all comparisons stays below alpha, whatever
    the dependence between them.

    Args:
        p_values: (n,) in [0, 1].
    Returns:
        (n,) in the same order.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise NvretError(f"p-values are {p_values!r}, expected a list of numbers in [0, 1]")
    order = values.argsort(kind="stable")
    adjusted = np.empty_like(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def verdict(
    interval: Interval, sign: Literal[1, -1] = 1, *, margin: float = 0.0
) -> Literal["reproduced", "not reproduced", "undecided"]:
    """What an interval says of the claim that the difference has this sign.

    Args:
        interval: of the difference that the claim is about.
        sign: +1 where the claim expects a positive difference, -1 for a negative one.
        margin: the smallest difference that would matter, at least 0. Without one, a claim whose
            true difference is nil stays undecided for ever.
    Returns:
        "reproduced" when the whole interval has the sign; "not reproduced" when the whole interval
        lies short of ``margin`` in that direction; else "undecided".

    >>> verdict(Interval(0.02, 0.01, 0.03)), verdict(Interval(0.02, -0.01, 0.05))
    ('reproduced', 'undecided')
    >>> verdict(Interval(0.001, -0.001, 0.003), margin=0.005)
    'not reproduced'
    """
    if sign not in (1, -1) or not margin >= 0:
        raise NvretError(f"sign {sign!r}, margin {margin!r}: expected +1 or -1, and 0 or more")
    low, high = sorted((sign * interval.low, sign * interval.high))
    if low > 0:
        return "reproduced"
    if high < margin:
        return "not reproduced"
    return "undecided"


def score_matrix(
    table: pa.Table | pd.DataFrame,
    dataset: str,
    methods: Sequence[str] | None = None,
    *,
    score: str = "score",
) -> ScoreMatrix:
    """One data set's part of a long table as an array.

    Args:
        table: columns ``method``, ``seed``, ``dataset``, ``query_id`` and the score; rows in any
            order.
        dataset: whose rows to take.
        methods: whose rows to take, and their order; default: all. A method without seeds does not
            fit into one array with the others: take it on its own.
        score: name of the score's column.
    Returns:
        methods (if not given), seeds and queries in the order of their first row.
    Raises:
        NvretError: a column, the data set or one method's seed or query is missing, or is there
            twice. A comparison over different queries would not be one.
    """
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    columns = ("method", "seed", "dataset", "query_id", score)
    if missing := set(columns) - set(table.column_names):
        raise NvretError(f"score table has no column {min(missing)!r}, only {table.column_names}")
    rows = table.select(columns).filter(pc.equal(table["dataset"], dataset))
    if rows.num_rows == 0:
        known = ", ".join(map(str, table["dataset"].unique().to_pylist()))
        raise NvretError(f"score table has no data set {dataset!r}, only {known}")
    if methods is not None:
        rows = rows.filter(pc.is_in(rows["method"], pa.array(methods, rows["method"].type)))
    if empty := [name for name in columns if rows[name].null_count]:
        raise NvretError(f"score table: column {empty[0]!r} of data set {dataset} holds nulls")
    axes = [rows[name].unique().to_pylist() for name in ("method", "seed", "query_id")]
    if methods is not None:
        axes[0] = list(methods)
    codes = [
        pc.index_in(rows[name], pa.array(axis, rows[name].type)).to_numpy()
        for name, axis in zip(("method", "seed", "query_id"), axes, strict=True)
    ]
    shape = tuple(map(len, axes))
    if 0 in shape:
        raise NvretError(f"data set {dataset} has no scores of methods {methods!r}")
    cell = np.ravel_multi_index(codes, shape)
    count = np.bincount(cell, minlength=np.prod(shape))
    if (wrong := np.flatnonzero(count != 1)).size:
        where = [a[i] for a, i in zip(axes, np.unravel_index(wrong[0], shape), strict=True)]
        raise NvretError(
            f"data set {dataset}: method {where[0]!r}, seed {where[1]!r}, query {where[2]!r} "
            f"has {count[wrong[0]]} scores, expected one"
        )
    values = np.empty(len(cell))
    values[cell] = rows[score].to_numpy()
    return ScoreMatrix(*axes, values.reshape(shape))


def _infer(
    sets: list[np.ndarray], level: float, method: Method, resamples: int, seed: int
) -> tuple[Interval, float]:
    """The interval, and the two-sided p-value of "the true mean is 0"."""
    if not 0 < level < 1:
        raise NvretError(f"level is {level!r}, expected a number between 0 and 1")
    if method == "t":
        return _by_t(sets, level)
    if method == "bootstrap":
        return _by_bootstrap(sets, level, resamples, seed)
    raise NvretError(f"method is {method!r}, expected 't' or 'bootstrap'")


def _by_t(sets: list[np.ndarray], level: float) -> tuple[Interval, float]:
    """Two-way random effects, score = mean + seed + query + rest, and Satterthwaite's t.

    The variance of the seeds' means and that of the queries' means both hold the rest, which is
    therefore taken off once; it is kept at least as large as the larger of the two.
    """
    from scipy.special import stdtr, stdtrit

    num_seeds = len(sets[0])
    value = float(np.mean([scores.mean() for scores in sets]))
    parts, freedom, rest = [], [], 0.0  # variance components of the mean, their degrees of freedom
    for scores in sets:
        weight = 1 / len(sets) ** 2
        num_queries = scores.shape[1]
        by_query = scores.mean(0)
        parts.append(weight * by_query.var(ddof=1) / num_queries)
        freedom.append(num_queries - 1)
        if num_seeds > 1:
            left = scores - by_query - scores.mean(1, keepdims=True) + scores.mean()
            mean_square = (left**2).sum() / ((num_seeds - 1) * (num_queries - 1))
            rest += weight * mean_square / (num_seeds * num_queries)
    from_queries, from_seeds = sum(parts), 0.0
    if num_seeds > 1:
        by_seed = np.mean([scores.mean(1) for scores in sets], axis=0)
        from_seeds = float(by_seed.var(ddof=1) / num_seeds)
        parts.append(from_seeds)
        freedom.append(num_seeds - 1)
    variance = max(from_queries + from_seeds - rest, from_queries, from_seeds)
    if variance <= 0:
        return Interval(value, value, value), float(value == 0)
    degrees = variance**2 / sum(p**2 / d for p, d in zip(parts, freedom, strict=True))
    degrees = max(degrees, min(freedom))
    error = float(np.sqrt(variance))
    reach = float(stdtrit(degrees, (1 + level) / 2)) * error
    p = 2 * float(stdtr(degrees, -abs(value) / error))
    return Interval(value, value - reach, value + reach), p


def _by_bootstrap(
    sets: list[np.ndarray], level: float, resamples: int, seed: int
) -> tuple[Interval, float]:
    if resamples < 100:
        raise NvretError(f"resamples is {resamples}, expected at least 100")
    value = float(np.mean([scores.mean() for scores in sets]))
    replicates = _pigeonhole(sets, resamples, np.random.default_rng(seed))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    return Interval(value, float(low), float(high)), min(1.0, 2 * (1 + tail) / (1 + resamples))


def _pigeonhole(sets: list[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples,) means; the seeds are drawn once for all sets, the queries within each set."""
    num_seeds = len(sets[0])
    drawn = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)
    seeds = drawn / num_seeds
    total = np.zeros(resamples)
    for scores in sets:
        num_queries = scores.shape[1]
        step = max(1, CHUNK // num_queries)
        for start in range(0, resamples, step):
            rows = slice(start, min(start + step, resamples))
            size = rows.stop - start
            queries = rng.integers(num_queries, size=(size, num_queries), dtype=np.int32)
            queries += num_queries * np.arange(size, dtype=np.int32)[:, None]
            counts = np.bincount(queries.ravel(), minlength=size * num_queries)
            by_seed = counts.reshape(size, num_queries).astype(np.float64) @ scores.T
            total[rows] += (by_seed * seeds[rows]).sum(1) / num_queries
    return total / len(sets)


def _differences(a: Scores, b: Scores) -> list[np.ndarray]:
    left, right = _as_sets(a, "a"), _as_sets(b, "b")
    if len(left) != len(right):
        raise NvretError(f"a has {len(left)} test sets and b has {len(right)}: cannot be paired")
    for x, y in zip(left, right, strict=True):
        if x.shape[1] != y.shape[1] or (len(x) != len(y) and 1 not in (len(x), len(y))):
            raise NvretError(f"a has shape {x.shape} and b {y.shape}: (seeds, queries) must match")
    return [x - y for x, y in zip(left, right, strict=True)]


def _as_sets(scores: Scores, name: str) -> list[np.ndarray]:
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
