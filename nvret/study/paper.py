"""What the paper reports, looked up in ``results/paper``; no figure of it stands anywhere else."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pandas as pd
from pydantic import Field

from nvret.study import report
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
    dataset: str = report.AVERAGE


class PaperMean(Section):
    """The mean of a column of a table of the paper, over the rows with these values."""

    table: str
    column: str
    where: dict[str, str] = Field(default_factory=dict)


def value(reference: PaperDifference | PaperMean | None) -> float | None:
    """What the paper reports: a difference of NDCG@10 in [-1, 1], or a share.

    >>> round(value(PaperDifference(
    ...     table="rq3_methods", better="TopK-PercPos 95%", worse="Naive Top-K")), 4)
    0.0449
    """
    if reference is None:
        return None
    table = _table(reference.table)
    if isinstance(reference, PaperMean):
        for column, value in reference.where.items():
            table = table[table[column].astype(str) == value]
        if table.empty:
            raise NvretError(f"{reference.table}.csv of the paper has no row {reference.where}")
        return float(table[reference.column].mean())
    rows = table[(table["student"] == reference.student) & (table["metric"] == "ndcg_at_10")]
    rows = rows[rows["dataset"] == reference.dataset].set_index(reference.column)["mean"]
    for name in (reference.better, reference.worse):
        if name not in rows.index:
            raise NvretError(f"{reference.table}.csv of the paper has no {name!r}: {list(rows)}")
    return float(rows[reference.better] - rows[reference.worse])


@cache
def _table(name: str) -> pd.DataFrame:
    return report.paper_table(name)
