"""What a percentage or a margin would keep of a table of negatives, and which ones to try.

Mining anew with that ceiling gives more, since the next candidates fill the free places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nvret import methods

FAMILIES = ("perc-pos", "margin-pos")
LEAST = 20  # suspects, and half as many queries that have one, before anything is suggested
DRAWS = 400


@dataclass(frozen=True)
class Suggestion:
    """The ceiling of one family that tells suspects from other negatives best."""

    family: str  # "perc-pos" or "margin-pos"
    parameter: float | None = None  # the best on the grid; None where nothing can be suggested
    low: float = np.nan  # 95 % of the bootstrap samples put the best between this and the next
    high: float = np.nan
    suspects: int = 0  # negatives with a sign in their text or labels
    queries: int = 0  # that have any
    suspects_dropped: float = np.nan  # shares that the parameter would drop
    others_dropped: float = np.nan
    why: str = ""  # there is no suggestion


def recorded(facts: dict[str, Any], queries: pd.Series, positive_scores: pd.Series) -> np.ndarray:
    """(rows,) ceilings of negatives by the method that mined them; inf if it is not known here.

    Args:
        facts: of ``nvret.negatives.provenance``.
        queries, positive_scores: of each negative.
    """
    record = facts["method"]
    if record["name"] not in methods.BY_NAME:
        return np.full(len(queries), np.inf)
    if facts["ceiling_positive"] == "lowest":
        positive_scores = positive_scores.groupby(queries).transform("min")
    method = methods.build_method(record["name"], **record["parameters"])
    return method.ceiling(positive_scores.to_numpy(), safe=facts["negative_positives"] == "safe")


def grid(family: str, rows: pd.DataFrame) -> np.ndarray:
    """(51,) parameters to try, from the loosest to the tightest.

    Percentages run from 100 to 50; margins, on the teacher's own scale, from 0 to about the 95th
    percentile of the gaps between positive and negative, in steps of a round size.
    """
    if family == "perc-pos":
        return np.arange(100, 49, -1) / 100
    gaps = rows["positive_score"].to_numpy(float) - rows["score"].to_numpy(float)
    rough = max(float(np.quantile(gaps, 0.95)), 1e-6) / 50
    size = 10 ** np.floor(np.log10(rough))
    step = next(size * f for f in (1, 2, 5, 10) if size * f >= rough * (1 - 1e-9))
    return np.array([float(f"{step * n:.6g}") for n in range(51)])


def survival(family: str, rows: pd.DataFrame, suspect: np.ndarray) -> pd.DataFrame:
    """Shares that stay under each ceiling of the grid.

    Args:
        rows: a row a negative: pair, score, positive_score.
        suspect: (rows,) bool.
    Returns:
        columns parameter; suspects, others: shares of these negatives; pairs: the share of the
        pairs with negatives that keep one at least. NaN where there is none to keep.

    >>> rows = pd.DataFrame({"pair": [0, 0], "score": [0.9, 0.5], "positive_score": 1.0})
    >>> survival("perc-pos", rows, np.array([True, False])).iloc[20].tolist()
    [0.8, 0.0, 1.0, 1.0]
    """
    lines = []
    for parameter, mask in _kept(family, rows):
        kept, pairs = pd.Series(mask), rows["pair"][mask].nunique() / rows["pair"].nunique()
        lines.append((parameter, kept[suspect].mean(), kept[~suspect].mean(), pairs))
    return pd.DataFrame(lines, columns=["parameter", "suspects", "others", "pairs"])


def suggest(family: str, rows: pd.DataFrame, suspect: np.ndarray) -> Suggestion:
    """The ceiling under which the suspects dropped, less the others dropped, are most.

    Nothing is suggested where a 95 % interval of that difference (shares, bootstrap over queries)
    reaches 0, or where there are few suspects. Of equally good ceilings the loosest is taken.

    Args:
        rows: a row a negative: query, score, positive_score.
        suspect: (rows,) bool; must not come from the scores themselves.
    """
    count, queries = int(suspect.sum()), rows["query"][suspect].nunique()
    known = {"family": family, "suspects": count, "queries": queries}
    if count < LEAST or 2 * queries < LEAST:
        why = f"{count} suspicious negatives of {queries} queries are too few, expected at least "
        return Suggestion(**known, why=f"{why}{LEAST} of {LEAST // 2} queries or more")
    if suspect.all():
        return Suggestion(**known, why="every negative is suspicious")
    values = grid(family, rows)
    codes, names = pd.factorize(rows["query"])
    # A negative falls at the first ceiling that it does not stay below, and at all tighter ones
    falls = sum(kept.astype(np.int64) for _, kept in _kept(family, rows))
    totals = np.zeros((2, len(names), len(values) + 1), np.float32)
    np.add.at(totals, (suspect.astype(int), codes, falls), 1)
    others, suspects = totals.cumsum(2)
    even = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(0).multinomial(len(names), even, DRAWS)
    weights = np.vstack([np.ones(len(names), int), draws]).astype(np.float32)
    gains = _dropped(weights @ suspects) - _dropped(weights @ others)
    curve, curves = gains[0], gains[1:]
    best = int(curve.argmax())
    if curve[best] <= 0 or np.quantile(curves[:, best], 0.025) <= 0:
        why = "the score does not tell the suspicious negatives from the others"
        return Suggestion(**known, why=why)
    ends = np.quantile(values[curves.argmax(1)], [0.025, 0.975], method="nearest").tolist()
    return Suggestion(
        **known,
        parameter=float(values[best]),
        low=ends[0],
        high=ends[1],
        suspects_dropped=float(suspects[:, best].sum() / suspects[:, -1].sum()),
        others_dropped=float(others[:, best].sum() / others[:, -1].sum()),
    )


def _kept(family: str, rows: pd.DataFrame) -> Iterator[tuple[float, np.ndarray]]:
    """Each parameter of the grid, and which negatives lie below its ceilings, (rows,) bool."""
    scores, positives = rows["score"].to_numpy(), rows["positive_score"].to_numpy()
    for parameter in grid(family, rows).tolist():
        ceiling = methods.BY_NAME[family](parameter).ceiling(positives, safe=True)
        yield parameter, scores < ceiling


def _dropped(counts: np.ndarray) -> np.ndarray:
    """(draws, steps) shares of what stands in the last column."""
    return counts[:, :-1] / np.maximum(counts[:, -1:], 1)
