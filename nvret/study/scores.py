"""The scores of a study: every arm, seed, test set and query; kept in one small file.

The file is what everything else is computed from: tables, figures, the ledger of claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nvret.utils import store
from nvret.utils.errors import NvretError

METRICS = ("ndcg_at_10", "recall_at_100")


@dataclass(frozen=True)
class Results:
    """Scores of a study.

    Attributes:
        arms: a row an arm, by its label; the columns of ``nvret.study.arms.Arm.row``.
        scores: rows (dataset, query_id), columns (metric, arm, seed), float32; NaN where an arm is
            not tested on a set.
        logs: a row per training step, arm and seed, with the step's loss; empty when read back.
        dev: name of the development split, which counts in no average.
    """

    arms: pd.DataFrame
    scores: pd.DataFrame
    logs: pd.DataFrame
    dev: str

    @classmethod
    def of(cls, arms: pd.DataFrame, scores: pd.DataFrame, logs: pd.DataFrame, dev: str) -> Results:
        """From a table with a row per arm, seed, dataset and query_id, and a column per metric."""
        wide = scores.pivot(
            index=["dataset", "query_id"], columns=["arm", "seed"], values=list(METRICS)
        )
        order = list(dict.fromkeys(scores["dataset"]))
        wide = wide.astype(np.float32).reindex(order, level="dataset")
        return cls(arms, wide, logs, dev)

    @cached_property
    def datasets(self) -> list[str]:
        """Names of the test sets, the development split not among them."""
        names = dict.fromkeys(self.scores.index.get_level_values("dataset"))
        return [name for name in names if name != self.dev]

    def find(self, **wanted: Any) -> list[str]:
        """Labels of the arms whose columns have these values; None for an empty cell.

        A list stands for any of its values.
        """
        rows = self.arms
        for column, value in wanted.items():
            if column not in rows and column != "label":
                raise NvretError(f"arms have no {column!r}, expected one of {', '.join(rows)}")
            cells = rows.index.to_series() if column == "label" else rows[column]
            values = value if isinstance(value, list) else [value]
            keep = cells.isin([v for v in values if v is not None])
            if None in values:
                keep |= cells.isna()
            rows = rows[keep]
        return list(rows.index)

    def one(self, **wanted: Any) -> str:
        """The label of the only arm with these values."""
        labels = self.find(**wanted)
        if len(labels) != 1:
            raise NvretError(f"{len(labels)} arms have {wanted}, expected one: {labels[:4]}")
        return labels[0]

    def values(
        self, label: str, metric: str = "ndcg_at_10", datasets: list[str] | None = None
    ) -> dict[str, np.ndarray]:
        """For each test set that the arm is tested on (or the named ones) its (S, Q) scores."""
        sets = self._sets(label, metric)
        return {name: sets[name] for name in (datasets or self.datasets) if name in sets}

    def _sets(self, label: str, metric: str) -> dict[str, np.ndarray]:
        if (label, metric) not in self._arrays:
            sets = {}
            for name, rows in self.scores[metric][label].groupby(level="dataset", sort=False):
                values = rows.to_numpy(np.float64).T
                there = ~np.isnan(values)
                values = values[there.any(1)][:, there.any(0)]  # a base model has one seed
                if values.size:
                    sets[name] = values
            self._arrays[label, metric] = sets
        return self._arrays[label, metric]

    @cached_property
    def _arrays(self) -> dict[tuple[str, str], dict[str, np.ndarray]]:
        return {}

    def save(self, path: Path) -> None:
        """Write arms and scores as Parquet."""
        flat = self.scores.copy()
        flat.columns = ["|".join(map(str, column)) for column in flat.columns]
        flat = flat.reset_index()
        flat.attrs = {"dev": self.dev, "arms": self.arms.reset_index().to_dict("list")}
        with store.atomic_file(path) as partial:
            flat.to_parquet(partial, compression="zstd", index=False)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote.

        Raises:
            NvretError: no such file.
        """
        if not path.is_file():
            raise NvretError(f"{path}: no such file; run the profile first")
        flat = pd.read_parquet(path)
        scores = flat.set_index(["dataset", "query_id"])
        keys = [name.split("|") for name in scores.columns]
        scores.columns = pd.MultiIndex.from_tuples(
            [(metric, arm, int(seed)) for metric, arm, seed in keys], names=[None, "arm", "seed"]
        )
        arms = pd.DataFrame(flat.attrs["arms"]).set_index("arm")
        return cls(arms, scores, pd.DataFrame(), flat.attrs["dev"])
