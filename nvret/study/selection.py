"""Which arms of a study the words of the pre-registration mean."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nvret import methods
from nvret.study import claims
from nvret.study.arms import defaults
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.utils.errors import NvretError


class NotRun(NvretError):
    """The profile does not have what the claim needs; the message says what is missing."""


@dataclass(frozen=True)
class Selection:
    """One student's arms in one study.

    Attributes:
        teachers: columns teacher, dataset, mean: NDCG@10 of the teachers; None: not known.
    """

    results: Results
    student: str
    settings: Settings
    teachers: pd.DataFrame | None = None

    def select(self, wanted: claims.ArmFilter) -> list[str]:
        """Labels of the student's arms that a filter means."""
        asked = wanted.model_dump(exclude_unset=True)
        chosen = self.settings.students.get(self.student)
        columns = dict.fromkeys(claims.ArmFilter.model_fields)
        if chosen:  # what no claim can ask for has to be as usual
            usual = defaults(self.settings, chosen, "naive")
            columns |= dict.fromkeys(name for name in self.results.arms if name in usual)

        def fits(row: Mapping[str, Any], column: str) -> bool:
            cell, value = row.get(column), asked.get(column, "default")
            if value in ("any", "largest"):
                return True
            if value == "best":
                return isinstance(cell, str) and "+" not in cell and not self._is_own_base(cell)
            if value in ("default", "other"):
                return _same(cell, self._default(row, column)) == (value == "default")
            return any(_same(cell, one) for one in (value if isinstance(value, list) else [value]))

        rows = self.results.arms[self.results.arms["student"] == self.student]
        rows = rows.loc[[all(fits(row, c) for c in columns) for row in rows.to_dict("records")]]
        for column, value in asked.items():
            if value == "largest":
                cells = rows[column].astype(float)
                rows = rows[cells == cells.max()]
        if asked.get("teacher") == "best" and len(rows):
            own, names = self.own_scores([self.results.dev]), list(rows["teacher"].unique())
            if unknown := [name for name in names if name not in own]:
                raise NotRun(f"the teachers' own scores on {self.results.dev} lack {unknown[0]}")
            rows = rows[rows["teacher"] == max(names, key=own.__getitem__)]
        return list(rows.index)

    def own_scores(self, datasets: Sequence[str]) -> dict[str, float]:
        """NDCG@10 of each teacher that has been tested on all of these sets: their mean."""
        if self.teachers is None:
            raise NotRun("no table of the teachers' own scores")
        rows = self.teachers[self.teachers["dataset"].isin(datasets)]
        wide = rows.pivot(index="teacher", columns="dataset", values="mean")
        means = wide.reindex(columns=list(datasets)).dropna().mean(axis=1)
        return {str(name): float(mean) for name, mean in means.items()}

    def _is_own_base(self, teacher: str) -> bool:
        """Self-mining: the student's base model as its teacher."""
        chosen = self.settings.students.get(self.student)
        return chosen is not None and teacher == chosen.model

    def _default(self, row: Mapping[str, Any], column: str) -> Any:
        """What an arm of this family has in a column when its grid says nothing."""
        family = row["family"]
        mined = family in methods.BY_NAME
        if column == "parameter":
            return next(iter(vars(methods.build_method(family)).values()), None) if mined else None
        if column == "teacher" and not mined and _same(row.get("mask_margin"), None):
            return None
        return defaults(self.settings, self.settings.students[self.student], family).get(column)

    def side(self, wanted: claims.ArmFilter) -> tuple[str, str]:
        """The label of the arm that stands for a filter, and how it was chosen, if it was."""
        labels = self.select(wanted)
        asked = wanted.model_dump(exclude_unset=True)
        what = ", ".join(f"{name} {value}" for name, value in asked.items())
        label = best(self.results, labels, what)
        texts = [f"chosen on dev: {short(label)}"] if len(labels) > 1 else []
        if wanted.teacher == "best":
            teacher = self.results.arms.at[label, "teacher"]
            own = self.own_scores([self.results.dev])[teacher]
            texts.append(f"best teacher by its own NDCG@10 on dev: {teacher}, {own:.3f}")
        return label, "; ".join(texts)

    def parts(self, claim: claims.Group) -> dict[Any, str]:
        """A group's arms by what tells them apart; of several with one value the best on dev."""
        labels = self.select(claim.arms)
        groups = self.results.arms.loc[labels].groupby(claim.by, sort=False).groups
        if claim.by == "teacher":
            groups = {name: own for name, own in groups.items() if not self._is_own_base(name)}
        if not groups:
            asked = claim.arms.model_dump(exclude_unset=True)
            raise NotRun(f"no arm with {', '.join(asked)} as claimed")
        return {
            key: best(self.results, list(own), f"{claim.by} {key}") for key, own in groups.items()
        }


def best(results: Results, labels: Sequence[str], what: str) -> str:
    """The only one of these arms, or the best of them on the development split."""
    if not labels:
        raise NotRun(f"no arm with {what}")
    if len(labels) == 1:
        return labels[0]
    if results.dev not in results.scores.index.get_level_values("dataset"):
        raise NotRun(f"{len(labels)} arms with {what}, and no development split to choose on")
    return results.best_on_dev(labels)


def short(label: str) -> str:
    """An arm's label without the student.

    >>> short("static: Naive Top-K, in-batch")
    'Naive Top-K, in-batch'
    """
    return label.split(": ", 1)[-1]


def _same(cell: Any, value: Any) -> bool:
    if value is None or pd.isna(cell):
        return value is None and bool(pd.isna(cell))
    if isinstance(value, str):
        return fnmatch.fnmatchcase(str(cell), value)
    return math.isclose(float(cell), float(value), rel_tol=1e-9)
