"""What the paper reports, looked up in ``results/paper``; no figure of it stands anywhere else."""

from __future__ import annotations

from typing import Literal

import pandas as pd
from pydantic import Field

from nvret.study import tables
from nvret.study.config import project_root
from nvret.study.scores import Results
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section


class PaperDifference(Section):
    """Two rows of a table of the paper; the claim is about the first less the second.

    Attributes:
        table: in ``results/paper``.
        better, worse: values of ``column``.
    """

    table: str
    better: str
    worse: str
    column: Literal["method", "teacher"] = "method"
    student: str = "e5-large-unsupervised"
    dataset: str = tables.AVERAGE


class PaperMean(Section):
    """The mean of a column of a table of the paper, over the rows with these values."""

    table: str
    column: str
    where: dict[str, str] = Field(default_factory=dict)


def table(name: str) -> pd.DataFrame:
    """A table of the paper, in the schema of ``tables.means``."""
    return pd.read_csv(project_root() / "results" / "paper" / f"{name}.csv")


def value(reference: PaperDifference | PaperMean | None) -> float | None:
    """What the paper reports: a difference of NDCG@10 in [-1, 1], or a share.

    Raises:
        NvretError: the paper's table has no such row.

    >>> round(value(PaperDifference(
    ...     table="rq3_methods", better="TopK-PercPos 95%", worse="Naive Top-K")), 4)
    0.0449
    """
    if reference is None:
        return None
    rows = table(reference.table)
    if isinstance(reference, PaperMean):
        for column, name in reference.where.items():
            rows = rows[rows[column].astype(str) == name]
        if rows.empty:
            raise NvretError(f"{reference.table}.csv of the paper has no row {reference.where}")
        return float(rows[reference.column].mean())
    rows = rows[(rows["student"] == reference.student) & (rows["metric"] == tables.METRIC)]
    means = rows[rows["dataset"] == reference.dataset].set_index(reference.column)["mean"]
    for name in (reference.better, reference.worse):
        if name not in means.index:
            known = ", ".join(map(str, means.index))
            raise NvretError(f"{reference.table}.csv of the paper has no {name!r}, only {known}")
    return float(means[reference.better] - means[reference.worse])


def beside(results: Results, student: str, name: str = "rq3_methods") -> pd.DataFrame:
    """A table of the paper and this student's arms, each as points of NDCG@10 over naive top-k.

    The models and test sets differ, so that only the differences compare.

    Args:
        name: of the paper's table.
    """
    published = table(name)
    published = published[
        (published["dataset"] == tables.AVERAGE) & (published["metric"] == tables.METRIC)
    ]
    columns = {}
    for model, group in published.groupby("student", sort=False):
        values = group.drop_duplicates("method").set_index("method")["mean"]
        columns[f"paper: {model}"] = 100 * (values - values[tables.PLAIN["naive"]])
    labels = tables.plain(results, student)
    rows = {}
    for label in labels.values():
        points = tables.points(tables.difference(results, label, labels["naive"]))
        rows[results.arms.at[label, "method"]] = {"here": points.pop("value"), **points}
    return pd.DataFrame(rows).T.join(pd.DataFrame(columns), how="left")
