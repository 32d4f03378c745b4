"""What the scores of a study say of a claim: which arms it means, and the verdict on them.

Every claim comes down to contrasts: a weighted sum of arms, of which each seed and query gives one
value, with the interval and the margin of `statistics`. A claim of several parts ("each
other arm is better") holds when all parts hold: each is then tested at the full level, since all
of them have to pass. It fails when any part fails, of which there are several chances, so that
those are adjusted (Holm).

Source: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling" (all parts have
to pass); Holm 1979.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from nvret import methods
from nvret.analysis import statistics
from nvret.analysis.statistics import Interval
from nvret.study import claims, tables
from nvret.study.arms import defaults
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

Verdict = Literal["reproduced", "not reproduced", "undecided", "not testable here", "not run"]
VERDICTS: tuple[Verdict, ...] = Verdict.__args__
SLOPE = 0.1  # of a teacher's NDCG@10, that a slope is told for
ALPHA = 0.05


class NotRun(NvretError):
    """The profile does not have what the claim needs; the message says what is missing."""


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on; the columns of the ledger.

    The difference is that of the contrast that decides, in NDCG@10, or a share; p is two-sided, of
    "no difference" (of "the margin" where the claim is about it); queries are summed over the sets.
    """

    verdict: Verdict
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    seeds: int = 0
    queries: int = 0
    note: str = ""


def decide(
    claim: claims.Trained,
    student: str,
    results: Results,
    settings: Settings,
    margin: float,
    teachers: pd.DataFrame | None = None,
) -> Decision:
    """The verdict on one claim for one student.

    Args:
        margin: the smallest difference that matters, in NDCG@10.
        teachers: columns teacher, dataset, mean: NDCG@10 of the teachers, for a slope.
    Raises:
        NotRun: an arm that the claim needs is missing.
    """
    if isinstance(claim, claims.Pair):
        sides = [side(results, one, student, settings) for one in (claim.better, claim.worse)]
        (better, _), (worse, _) = sides
        if better == worse:
            raise NotRun(f"one arm on both sides: {_short(better)}")
        chosen = ", ".join(_short(label) for label, was_chosen in sides if was_chosen)
        note = f"chosen on dev: {chosen}" if chosen else ""
        return _of(_contrast(results, {better: 1, worse: -1}), margin, note, claim.kind)
    arms = parts(claim, student, results, settings)
    if isinstance(claim, claims.Slope):
        return _slope(arms, results, margin, teachers)
    return _all_of(results, _links(claim, arms, results), margin)


def _links(
    claim: claims.Order | claims.Worst | claims.InnerOptimum,
    arms: dict[Any, str],
    results: Results,
) -> list[tuple[str, str]]:
    """The pairs of arms of which the claim says that the first is better."""
    if isinstance(claim, claims.InnerOptimum):
        labels = [arms[value] for value in sorted(arms)]
        if len(labels) < 3:
            raise NotRun(f"{len(labels)} values, expected three or more")
        inner = best(results, labels[1:-1], "an inner value")
        return [(inner, labels[0]), (inner, labels[-1])]
    names = claim.order if isinstance(claim, claims.Order) else [claim.worst]
    if missing := [name for name in names if name not in arms]:
        raise NotRun(f"no arm of {', '.join(missing)}")
    if isinstance(claim, claims.Order):
        return list(itertools.pairwise(arms[name] for name in names))
    worst = arms.pop(claim.worst)
    if not arms:
        raise NotRun(f"no other arm than {claim.worst}")
    return [(label, worst) for label in arms.values()]


def _contrast(results: Results, weights: Mapping[str, float]) -> list[np.ndarray]:
    """The weighted sum of arms on each test set that they share."""
    sets = list(results.contrast(weights).values())
    if not sets:
        raise NotRun(f"no scores on {tables.AVERAGE} for {', '.join(weights)}")
    return sets


def _of(sets: list[np.ndarray], margin: float, note: str, kind: str) -> Decision:
    """The decision that rests on a contrast; the kinds are those of ``claims.Pair``."""
    sign, shift = {"not-worse": (1, margin), "no-gain": (-1, -margin)}.get(kind, (1, 0.0))
    interval = statistics.mean_interval(sets)
    moved = Interval(*(x + shift for x in interval))
    verdict = statistics.verdict(moved, sign, margin=0.0 if shift else margin)
    queries = sum(values.shape[1] for values in sets)
    p = tables.p_value(sets, shift)
    return Decision(verdict, *interval, p, len(sets[0]), queries, note)


def _all_of(results: Results, links: Sequence[tuple[str, str]], margin: float) -> Decision:
    """Whether the first of each two arms is better.

    Shown is the link that decides against the claim, or else the smallest difference.
    """
    contrasts = [_contrast(results, {better: 1, worse: -1}) for better, worse in links]
    intervals = [statistics.mean_interval(sets) for sets in contrasts]
    adjusted = statistics.holm([tables.p_value(sets, -margin) for sets in contrasts])
    fails = [i.value < margin and p <= ALPHA for i, p in zip(intervals, adjusted, strict=True)]
    holds = all(interval.low > 0 for interval in intervals)
    verdict = "reproduced" if holds else "not reproduced" if any(fails) else "undecided"
    deciding = [i for i, failed in enumerate(fails) if failed and not holds] or range(len(links))
    weakest = contrasts[min(deciding, key=lambda i: intervals[i].value)]
    note = "; ".join(
        f"{_short(better)} less {_short(worse)} {100 * i.value:+.2f} "
        f"[{100 * i.low:+.2f}, {100 * i.high:+.2f}]"
        for (better, worse), i in zip(links, intervals, strict=True)
    )
    return replace(_of(weakest, margin, note, "difference"), verdict=verdict)


def _slope(
    arms: Mapping[str, str], results: Results, margin: float, teachers: pd.DataFrame | None
) -> Decision:
    """Least squares through the students' scores; the teachers' own are taken as given."""
    if teachers is None:
        raise NotRun("no table of the teachers' own scores")
    known = teachers[teachers["dataset"] == tables.AVERAGE].set_index("teacher")["mean"]
    own = {name: known[name] for name in arms if name in known}
    x = np.array(list(own.values()))
    if len(own) < 3 or np.ptp(x) == 0:
        raise NotRun(f"{len(own)} teachers whose own score is known, expected three or more")
    weights = SLOPE * (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    sets = _contrast(results, dict(zip([arms[name] for name in own], weights, strict=True)))
    note = "teachers' own NDCG@10: " + ", ".join(f"{name} {own[name]:.3f}" for name in own)
    return _of(sets, margin, note, "difference")


def _short(label: str) -> str:
    """An arm's label without the student."""
    return label.split(": ", 1)[-1]


def from_reductions(claim: claims.ShareHalved, table: pd.DataFrame) -> dict[str, Decision]:
    """For each audited set: does the method mine so much fewer false negatives?

    Args:
        table: columns dataset, method, reduction, low, high; shares.
    """
    rows = table[table["method"] == claim.method].set_index("dataset")
    if rows.empty:
        raise NotRun(f"no audit of {claim.method}")
    decisions = {}
    for name, row in rows[["reduction", "low", "high"]].astype(float).iterrows():
        above = Interval(*(row - claim.at_least))  # NaN compares as neither side of 0: undecided
        decisions[name] = Decision(statistics.verdict(above), *row)
    return decisions


def from_overlaps(claim: claims.LowJaccard, table: pd.DataFrame) -> dict[str, Decision]:
    """For each training set: the mean overlap of two teachers; the pairs are all there are.

    Args:
        table: columns teacher_a, teacher_b, dataset, jaccard.
    """
    rows = table[table["teacher_a"] != table["teacher_b"]]
    if rows.empty:
        raise NotRun("no two teachers to compare")
    decisions = {}
    for name, values in rows.groupby("dataset", sort=False)["jaccard"]:
        verdict: Verdict = "reproduced" if values.mean() < claim.below else "not reproduced"
        note = f"from {values.min():.2f} to {values.max():.2f} over {len(values)} pairs of teachers"
        decisions[name] = Decision(verdict, float(values.mean()), note=note)
    return decisions


# Which arms of a study the words of the pre-registration mean


def select(
    results: Results, wanted: claims.ArmFilter, student: str, settings: Settings
) -> list[str]:
    """Labels of a student's arms that a filter of the pre-registration means."""
    asked = wanted.model_dump(exclude_unset=True)

    def fits(row: Mapping[str, Any], column: str) -> bool:
        cell, value = row.get(column), asked.get(column, "default")
        if value in ("any", "largest"):
            return True
        if value in ("default", "other"):
            return _same(cell, _default(row, column, settings, student)) == (value == "default")
        return any(_same(cell, one) for one in (value if isinstance(value, list) else [value]))

    rows = results.arms[results.arms["student"] == student]
    columns = claims.ArmFilter.model_fields
    rows = rows.loc[[all(fits(row, c) for c in columns) for row in rows.to_dict("records")]]
    for column, value in asked.items():
        if value == "largest":
            cells = rows[column].astype(float)
            rows = rows[cells == cells.max()]
    return list(rows.index)


def _same(cell: Any, value: Any) -> bool:
    if value is None or pd.isna(cell):
        return value is None and bool(pd.isna(cell))
    if isinstance(value, str):
        return fnmatch.fnmatchcase(str(cell), value)
    return math.isclose(float(cell), float(value), rel_tol=1e-9)


def _default(row: Mapping[str, Any], column: str, settings: Settings, student: str) -> Any:
    """What an arm of this family has in a column when its grid says nothing."""
    family = row["family"]
    mined = family in methods.BY_NAME
    if column == "parameter":
        return next(iter(vars(methods.build_method(family)).values()), None) if mined else None
    if column == "teacher" and not mined and _same(row.get("mask_margin"), None):
        return None
    return defaults(settings, settings.students[student], family).get(column)


def best(results: Results, labels: Sequence[str], what: str) -> str:
    """The only one of these arms, or the best of them on the development split."""
    if not labels:
        raise NotRun(f"no arm with {what}")
    if len(labels) == 1:
        return labels[0]
    if results.dev not in results.scores.index.get_level_values("dataset"):
        raise NotRun(f"{len(labels)} arms with {what}, and no development split to choose on")
    return results.best_on_dev(labels)


def side(
    results: Results, wanted: claims.ArmFilter, student: str, settings: Settings
) -> tuple[str, bool]:
    """The label of the arm that stands for a filter, and whether it was chosen."""
    labels = select(results, wanted, student, settings)
    asked = wanted.model_dump(exclude_unset=True)
    what = ", ".join(f"{name} {value}" for name, value in asked.items())
    return best(results, labels, what), len(labels) > 1


def parts(
    claim: claims.Group, student: str, results: Results, settings: Settings
) -> dict[Any, str]:
    """A group's arms by what tells them apart; of several with the same value the best on dev."""
    labels = select(results, claim.arms, student, settings)
    groups = results.arms.loc[labels].groupby(claim.by, sort=False).groups
    if not groups:
        asked = claim.arms.model_dump(exclude_unset=True)
        raise NotRun(f"no arm with {', '.join(asked)} as claimed")
    return {key: best(results, list(own), f"{claim.by} {key}") for key, own in groups.items()}
