"""From the words of the pre-registration to arms of a study."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nvret import methods
from nvret.study import arms, claims, tables
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.utils.errors import NvretError


class NotRun(NvretError):
    """The profile does not have what the claim needs; the message says what is missing."""


def select(
    results: Results, wanted: claims.ArmFilter, student: str, settings: Settings
) -> list[str]:
    """Labels of a student's arms that a filter of the pre-registration means."""
    rows = results.arms[results.arms["student"] == student]
    asked = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    for column in claims.ArmFilter.model_fields:
        value = asked.get(column, "default")
        if value not in ("any", "smallest", "largest"):
            keep = [_fits(row, column, value, settings, student) for row in rows.to_dict("records")]
            rows = rows[np.array(keep, bool)]
    for column, value in asked.items():
        if value in ("smallest", "largest") and len(rows):
            cells = rows[column].astype(float)
            rows = rows[cells == (cells.min() if value == "smallest" else cells.max())]
    return list(rows.index)


def _fits(
    row: Mapping[str, Any], column: str, value: Any, settings: Settings, student: str
) -> bool:
    cell = row.get(column)
    if value in ("default", "other"):
        return _same(cell, _default(row, column, settings, student)) == (value == "default")
    values = value if isinstance(value, list) else [value]
    return any(_same(cell, one) for one in values)


def _same(cell: Any, value: Any) -> bool:
    if value is None or cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return value is None and (cell is None or pd.isna(cell))
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
    return tables.chosen_on_dev(results, list(labels))


def side(
    results: Results, wanted: claims.ArmFilter, student: str, settings: Settings
) -> tuple[str, bool]:
    """The label of the arm that stands for a filter, and whether it was chosen."""
    labels = select(results, wanted, student, settings)
    words = ", ".join(f"{name} {getattr(wanted, name)}" for name in _in_order(wanted))
    return best(results, labels, words), len(labels) > 1


def parts(
    claim: claims.Group, student: str, results: Results, settings: Settings
) -> dict[Any, str]:
    """A group's arms by what tells them apart; of several with the same value the best on dev."""
    labels = select(results, claim.arms, student, settings)
    groups = results.arms.loc[labels].groupby(claim.by, sort=False).groups if labels else {}
    if not groups:
        raise NotRun(f"no arm with {', '.join(_in_order(claim.arms))} as claimed")
    return {key: best(results, list(own), f"{claim.by} {key}") for key, own in groups.items()}


def named(arms: Mapping[Any, str], names: Sequence[str]) -> list[str]:
    """The arms of these names, which all have to be there."""
    if missing := [name for name in names if name not in arms]:
        raise NotRun(f"no arm of {', '.join(missing)}")
    return [arms[name] for name in names]


def _in_order(wanted: claims.ArmFilter) -> list[str]:
    return [name for name in claims.ArmFilter.model_fields if name in wanted.model_fields_set]
