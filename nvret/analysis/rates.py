"""Rates of false negatives, with intervals over queries.

A rate is a ratio of sums over queries (false negatives / negatives), and the negatives of one
query resemble each other. Its variance is that of the linearised ratio, with queries as the units.
As rates near 0 are common here, where an interval of "± 2 standard errors" is wrong and a bootstrap
over queries without any event has no width at all, the interval is Wilson's at the *effective*
number of negatives: as many independent ones as would have that variance.

Source: Cochran 1977, section 6.3 (ratio); Korn and Graubard 1998, Survey Methodology 24 (effective
size); Donner and Zou 2012, Stat. Methods Med. Res. 21 (ratio of two from their limits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from nvret.analysis.statistics import Interval
from nvret.utils.errors import NvretError


class _Ratio(NamedTuple):
    """A rate; the linearised residual of each query, whose sum of squares is the rate's variance;
    how many negatives there are, and how many queries have any.
    """

    value: float
    residuals: np.ndarray
    negatives: int
    queries: int

    def interval(self, level: float = 0.95) -> Interval:
        if self.negatives == 0:
            return Interval(np.nan, 0.0, 1.0)
        p, variance = self.value, float((self.residuals**2).sum())
        # Without an event, or with events alone, nothing tells how much the negatives of a query
        # resemble each other: count a query once
        size = min(p * (1 - p) / variance, self.negatives) if variance > 0 else self.queries
        t = _t(self.queries, level)
        centre, share = (p + t**2 / (2 * size)) / (1 + t**2 / size), t / (1 + t**2 / size)
        reach = share * np.sqrt(p * (1 - p) / size + t**2 / (4 * size**2))
        low, high = max(0.0, float(centre - reach)), min(1.0, float(centre + reach))
        return Interval(p, min(low, p), max(high, p))


def _t(queries: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(queries - 1, 1), (1 + level) / 2))


def _ratio(counts: pd.DataFrame) -> _Ratio:
    totals = counts.groupby("query_id")[["mined", "false"]].sum().sort_index()
    mined, false = totals["mined"].to_numpy(float), totals["false"].to_numpy(float)
    value = false.sum() / mined.sum() if mined.sum() else np.nan
    used = int((mined > 0).sum())
    scale = np.sqrt(used / max(used - 1, 1)) / max(mined.sum(), 1)
    return _Ratio(float(value), scale * (false - value * mined), int(mined.sum()), used)


def rate(counts: pd.DataFrame, level: float = 0.95) -> Interval:
    """Share of the negatives that are known to be false, with its interval over queries.

    Args:
        counts: columns query_id, mined, false (`nvret.analysis.audit.false_negatives`).
    Returns:
        a share in [0, 1]; NaN in [0, 1] where nothing was mined.

    >>> counts = pd.DataFrame({"query_id": list("abcd"), "mined": 4, "false": [1, 0, 0, 1]})
    >>> rate(counts).value
    0.125
    """
    return _ratio(counts).interval(level)


def reduction(counts: pd.DataFrame, reference: pd.DataFrame, level: float = 0.95) -> Interval:
    """How much lower the rate is than the reference's: 1 - rate / rate of the reference.

    Paired by query: the interval comes from the limits of both rates and the correlation of their
    residuals. Where a method mines few known false negatives, or none, the usual linearised
    logarithm of the ratio has intervals that are much too narrow.

    Args:
        counts, reference: as in `rate`, for the same queries.
    Returns:
        a share, below 0 where there are more of them; NaN where the reference has none. The low
        end is -inf where the reference's rate may be 0.
    """
    if set(counts["query_id"]) ^ set(reference["query_id"]):
        sizes = [len(set(table["query_id"])) for table in (counts, reference)]
        raise NvretError(f"rates of other queries ({sizes[0]}, {sizes[1]}): they cannot be paired")
    a, b = _ratio(reference), _ratio(counts)
    if not a.value > 0:
        return Interval(np.nan, -np.inf, 1.0)
    (p, la, ua), (q, lb, ub) = a.interval(level), b.interval(level)
    sizes = np.sqrt((a.residuals**2).sum() * (b.residuals**2).sum())
    r = float((a.residuals * b.residuals).sum() / sizes) if sizes > 0 else 0.0

    def limit(of_q: float, of_p: float, sign: int) -> float:
        bottom = of_p * (2 * p - of_p)
        middle = p * q - r * abs(q - of_q) * abs(of_p - p)
        root = np.sqrt(max(middle**2 - of_q * (2 * q - of_q) * bottom, 0.0))
        return (middle + sign * root) / bottom if bottom else sign * np.inf

    most = limit(ub, la, 1) if la > 0 else np.inf
    return Interval(1 - q / p, float(1 - most), float(1 - max(limit(lb, ua, -1), 0.0)))
