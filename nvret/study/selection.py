"""From the words of the pre-registration to arms of a study."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nvret import methods
from nvret.study import arms, claims
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

ENDS = {"smallest": "min", "largest": "max"}


class NotRun(NvretError):
    """The profile does not have what the claim needs; the message says what is missing."""


def select(
    results: Results, wanted: claims.ArmFilter, student: str, settings: Settings
) -> list[str]:
    """Labels of a student's arms that a filter of the pre-registration means."""
    asked = wanted.model_dump(exclude_unset=True)

    def fits(row: Mapping[str, Any], column: str) -> bool:
        cell, value = row.get(column), asked.get(column, "default")
        if value in ("default", "other"):
            return _same(cell, _default(row, column, settings, student)) == (value == "default")
        return any(_same(cell, one) for one in (value if isinstance(value, list) else [value]))

    rows = results.arms[results.arms["student"] == student]
    plain = [c for c in claims.ArmFilter.model_fields if asked.get(c) not in ("any", *ENDS)]
    keep = [all(fits(row, column) for column in plain) for row in rows.to_dict("records")]
    rows = rows.loc[keep]
    for column, value in asked.items():
        if value in tuple(ENDS):
            cells = rows[column].astype(float)
            rows = rows[cells == cells.agg(ENDS[value])]
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
    return arms.defaults(settings, settings.students[student], family).get(column)


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
