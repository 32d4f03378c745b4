"""What the paper reports, looked up in ``results/paper``; no figure of it stands anywhere else."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from nvret.study import tables
from nvret.study.config import project_root
from nvret.study.scores import METRIC, Results
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section


class PaperTable(Section):
    """A student's rows of a table of the paper, each named by its value of ``column``."""

    table: str
    column: Literal["method", "teacher"] = "method"
    student: str = "e5-large-unsupervised"


class PaperDifference(PaperTable):
    """The average of one row less another's."""

    better: str
    worse: str


class PaperRows(PaperTable):
    """Rows by the values that tell a group's arms apart here."""

    rows: dict[str, str]


class PaperMean(Section):
    """The mean of a column of a table of the paper."""

    table: str
    column: str


def table(name: str) -> pd.DataFrame:
    """A table of the paper, in the schema of ``tables.means``."""
    return pd.read_csv(project_root() / "results" / "paper" / f"{name}.csv")


def averages(name: str) -> pd.DataFrame:
    """The rows of a table that hold the average NDCG@10."""
    rows = table(name)
    return rows[(rows["dataset"] == tables.AVERAGE) & (rows["metric"] == METRIC)]


def value(reference: PaperDifference | PaperRows | PaperMean | None, *arms: str) -> float | None:
    """What the paper reports: a difference of NDCG@10 in [-1, 1], or a share.

    Args:
        arms: a better and a worse one, by their keys of ``PaperRows``, which have no value of
            their own.
    Raises:
        NvretError: the paper's table has no such row.

    >>> round(value(PaperDifference(
    ...     table="rq3_methods", better="TopK-PercPos 95%", worse="Naive Top-K")), 4)
    0.0449
    """
    match reference:
        case PaperMean():
            return float(table(reference.table)[reference.column].mean())
        case PaperDifference():
            better, worse = reference.better, reference.worse
        case PaperRows() if arms:
            better, worse = (reference.rows[arm] for arm in arms)
        case _:
            return None
    rows = averages(reference.table)
    means = rows[rows["student"] == reference.student].set_index(reference.column)["mean"]
    for name in (better, worse):
        if name not in means.index:
            known = ", ".join(map(str, means.index))
            raise NvretError(f"{reference.table}.csv of the paper has no {name!r}, only {known}")
    return float(means[better] - means[worse])


def beside(results: Results, student: str) -> pd.DataFrame:
    """The paper's methods and this student's arms, each as points of NDCG@10 over naive top-k.

    The models and test sets differ, so that only the differences compare.
    """
    published = averages("rq3_methods")
    means = published.pivot(index="method", columns="student", values="mean")
    points = 100 * (means - means.loc[tables.PLAIN["naive"]])
    points = points[published["student"].unique()].add_prefix("paper: ")
    labels = tables.plain(results, student)
    rows = {}
    for label in labels.values():
        here = tables.points(results.difference(label, labels["naive"]))
        rows[results.arms.at[label, "method"]] = {"here": here.pop("value"), **here}
    return pd.DataFrame(rows).T.join(points, how="left")
