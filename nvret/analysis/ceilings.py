"""What a percentage or a margin would do to a table of negatives, and which ones to try.

The question is asked of negatives that are mined already: which of them would stay. Mining anew
with that ceiling gives more of them, since the next candidates fill the free places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nvret import methods

FAMILIES = {"perc-pos": methods.TopKPercPos, "margin-pos": methods.TopKMarginPos}
LEAST = 20  # suspects, and half as many queries that have one, before anything is suggested
DRAWS = 400


@dataclass(frozen=True)
class Suggestion:
    """The ceiling of one family that tells suspects from other negatives best.

    Attributes:
        family: "perc-pos" or "margin-pos".
        parameter: of the family, the best on the grid; None where nothing can be suggested.
        low, high: 95 % of the bootstrap samples of the queries put the best between these.
        suspects, queries: negatives with a sign in their text or labels; queries that have any.
        suspects_dropped, others_dropped: shares that ``parameter`` would drop.
        why: why there is no suggestion; "" where there is one.
    """

    family: str
    parameter: float | None = None
    low: float = np.nan
    high: float = np.nan
    suspects: int = 0
    queries: int = 0
    suspects_dropped: float = np.nan
    others_dropped: float = np.nan
    why: str = ""


def grid(family: str, rows: pd.DataFrame) -> np.ndarray:
    """(51,) parameters to try, from the loosest to the tightest.

    Percentages run from 100 to 50 in whole steps. Margins run from 0 to the 95th percentile of the
    gaps between positive and negative, in 50 steps of a round size: a margin is a number on the
    teacher's own scale.
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
        columns parameter; all, suspects, others: shares of these negatives; pairs: the share of
        the pairs with negatives that keep one at least. NaN where there is none to keep.

    >>> rows = pd.DataFrame({"pair": [0, 0], "score": [0.9, 0.5], "positive_score": 1.0})
    >>> survival("perc-pos", rows, np.array([True, False])).iloc[20].tolist()
    [0.8, 0.5, 0.0, 1.0, 1.0]
    """
    lines = []
    for parameter, kept in _kept(family, rows):
        kinds = kept, kept[suspect], kept[~suspect]
        shares = [kind.mean() if len(kind) else np.nan for kind in kinds]
        lines.append((parameter, *shares, rows["pair"][kept].nunique() / rows["pair"].nunique()))
    return pd.DataFrame(lines, columns=["parameter", "all", "suspects", "others", "pairs"])


def suggest(family: str, rows: pd.DataFrame, suspect: np.ndarray, seed: int = 0) -> Suggestion:
    """The ceiling under which the suspects dropped, less the others dropped, are most.

    The score must separate them: where a 95 % interval of that difference (shares, bootstrap over
    queries) reaches 0, or where there are few suspects, nothing is suggested. Of equally good
    ceilings the loosest is taken.

    Args:
        rows: a row a negative: query, score, positive_score.
        suspect: (rows,) bool; must not come from the scores themselves.
    """
    count, queries = int(suspect.sum()), rows["query"][suspect].nunique()
    known = {"family": family, "suspects": count, "queries": queries}
    if count < LEAST or 2 * queries < LEAST:
        why = (
            f"{count} suspicious negatives of {queries} queries are too few, expected at least "
            f"{LEAST} of {LEAST // 2} queries or more"
        )
        return Suggestion(**known, why=why)
    if suspect.all():
        return Suggestion(**known, why="every negative is suspicious")
    values = grid(family, rows)
    codes, names = pd.factorize(rows["query"])
    # A negative falls at the first ceiling that it does not stay below, and at all tighter ones
    falls = sum(kept.astype(np.int64) for _, kept in _kept(family, rows))
    totals = np.zeros((2, len(names), len(values) + 1), np.float32)
    np.add.at(totals, (suspect.astype(int), codes, falls), 1)
    others, suspects = totals.cumsum(2)
    curve = _separation(np.ones(len(names), np.float32), suspects, others)
    rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    draws = [rng.multinomial(len(names), even).astype(np.float32) for _ in range(DRAWS)]
    curves = np.array([_separation(weights, suspects, others) for weights in draws])
    best = int(curve.argmax())
    if curve[best] <= 0 or np.quantile(curves[:, best], 0.025) <= 0:
        why = "the score does not tell the suspicious negatives from the others"
        return Suggestion(**known, why=why)
    low, high = np.quantile(values[curves.argmax(1)], [0.025, 0.975], method="nearest")
    return Suggestion(
        **known,
        parameter=float(values[best]),
        low=float(low),
        high=float(high),
        suspects_dropped=float(suspects[:, best].sum() / suspects[:, -1].sum()),
        others_dropped=float(others[:, best].sum() / others[:, -1].sum()),
    )


def _kept(family: str, rows: pd.DataFrame) -> Iterator[tuple[float, np.ndarray]]:
    """Each parameter of the grid, and which negatives lie below its ceilings, (rows,) bool."""
    scores, positives = rows["score"].to_numpy(), rows["positive_score"].to_numpy()
    for parameter in grid(family, rows).tolist():
        yield parameter, scores < FAMILIES[family](parameter).ceiling(positives, safe=True)


def _separation(weights: np.ndarray, suspects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(steps,) share of the suspects dropped less share of the others dropped."""
    a, b = weights @ suspects, weights @ others
    return a[:-1] / max(a[-1], 1.0) - b[:-1] / max(b[-1], 1.0)
