"""What the paper reports, looked up in ``results/paper``; no figure of it stands anywhere else."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from nvret.study import tables
from nvret.study.config import project_root
from nvret.study.scores import METRIC, Results
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section


class PaperDifference(Section):
    """The average of one row of a table of the paper (a value of ``column``) less another's."""

    table: str
    better: str
    worse: str
    column: Literal["method", "teacher"] = "method"
    student: str = "e5-large-unsupervised"


class PaperRows(Section):
    """Rows of a table of the paper, by the values that tell a group's arms apart here."""

    table: str
    rows: dict[str, str]
    column: Literal["method", "teacher"] = "method"
    student: str = "e5-large-unsupervised"

    def between(self, better: str, worse: str) -> PaperDifference:
        """One value's row less another's."""
        return PaperDifference(
            table=self.table, better=self.rows[better], worse=self.rows[worse],
            column=self.column, student=self.student,
        )  # fmt: skip


class PaperMean(Section):
    """The mean of a column of a table of the paper."""

    table: str
    column: str


def table(name: str) -> pd.DataFrame:
    """A table of the paper, in the schema of ``tables.means``."""
    return pd.read_csv(project_root() / "results" / "paper" / f"{name}.csv")


def value(reference: PaperDifference | PaperRows | PaperMean | None) -> float | None:
    """What the paper reports: a difference of NDCG@10 in [-1, 1], or a share.

    Rows have no value of their own, but one between each two.

    Raises:
        NvretError: the paper's table has no such row.

    >>> round(value(PaperDifference(
    ...     table="rq3_methods", better="TopK-PercPos 95%", worse="Naive Top-K")), 4)
    0.0449
    """
    if reference is None or isinstance(reference, PaperRows):
        return None
    rows = table(reference.table)
    if isinstance(reference, PaperMean):
        return float(rows[reference.column].mean())
    rows = rows[(rows["student"] == reference.student) & (rows["metric"] == METRIC)]
    means = rows[rows["dataset"] == tables.AVERAGE].set_index(reference.column)["mean"]
    for name in (reference.better, reference.worse):
        if name not in means.index:
            known = ", ".join(map(str, means.index))
            raise NvretError(f"{reference.table}.csv of the paper has no {name!r}, only {known}")
    return float(means[reference.better] - means[reference.worse])


def beside(results: Results, student: str) -> pd.DataFrame:
    """The paper's methods and this student's arms, each as points of NDCG@10 over naive top-k.

    The models and test sets differ, so that only the differences compare.
    """
    published = table("rq3_methods")
    published = published[
        (published["dataset"] == tables.AVERAGE) & (published["metric"] == METRIC)
    ]
    means = published.pivot(index="method", columns="student", values="mean")
    points = 100 * (means - means.loc[tables.PLAIN["naive"]])
    points = points[published["student"].unique()].add_prefix("paper: ")
    labels = tables.plain(results, student)
    rows = {}
    for label in labels.values():
        here = tables.points(results.difference(label, labels["naive"]))
        rows[results.arms.at[label, "method"]] = {"here": here.pop("value"), **here}
    return pd.DataFrame(rows).T.join(points, how="left")
