"""The scores of a study: every arm, seed, test set and query; kept in one small file.

The file is what everything else is computed from: tables, figures, the ledger of claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nvret import evaluation
from nvret.analysis import statistics
from nvret.analysis.statistics import Estimate, Interval
from nvret.data import RetrievalDataset
from nvret.evaluation import Evaluation
from nvret.utils import store
from nvret.utils.errors import NvretError
from nvret.utils.trec import metrics

METRIC = "ndcg_at_10"
COLLAPSED = "ndcg_at_10_collapsed"  # near-duplicates count as one passage
METRICS = (METRIC, "recall_at_100", COLLAPSED)
CORPORA = ["student", "dataset", "test", "corpus", "passages"]


@dataclass(frozen=True)
class Results:
    """Scores of a study.

    Attributes:
        arms: a row an arm, by its label; the columns of ``nvret.study.arms.Arm.row``.
        scores: rows (dataset, query_id), columns (metric, arm, seed), float32; NaN where an arm is
            not tested on a set, and where a set has no near-duplicate clusters to collapse.
        logs: a row per training step, arm and seed, with the step's loss; empty when read back.
        dev: name of the development split, which counts in no average.
        primary: names of the in-domain test sets in the primary corpus.
        corpora: a row for each student and in-domain test set, in every corpus: student, dataset,
            test (its name in the primary corpus), corpus, passages (their number). A set that is
            not in ``primary`` counts in no average: it asks the same questions once more.
        differing: arms x arms, of ``tables.differing``, where both mine; else empty.
    """

    arms: pd.DataFrame
    scores: pd.DataFrame
    logs: pd.DataFrame
    dev: str
    primary: list[str]
    corpora: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CORPORA))
    differing: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(
        cls, arms: pd.DataFrame, scores: pd.DataFrame, logs: pd.DataFrame, *rest: Any, **more: Any
    ) -> Results:
        """From a table with a row per arm, seed, dataset and query_id, and a column per metric.

        The other arguments are those of the class.
        """
        index, columns = ["dataset", "query_id"], ["arm", "seed"]
        wide = scores.reindex(columns=[*index, *columns, *METRICS])
        wide = wide.pivot(index=index, columns=columns, values=list(METRICS)).astype(np.float32)
        wide = wide.reindex(scores["dataset"].unique(), level="dataset")
        return cls(arms, wide, logs, *rest, **more)

    @cached_property
    def datasets(self) -> list[str]:
        """Names of the test sets that averages count: neither the development split nor an
        in-domain set in another corpus than the primary one."""
        names = dict.fromkeys(self.scores.index.get_level_values("dataset"))
        return [name for name in names if name not in self.apart]

    @cached_property
    def apart(self) -> list[str]:
        """Names of the others."""
        others = [name for name in self.corpora["dataset"] if name not in self.primary]
        return [*dict.fromkeys(others), self.dev]

    def find(self, **wanted: Any) -> list[str]:
        """Labels of the arms whose columns have these values; None for an empty cell.

        A list stands for any of its values.
        """
        rows = self.arms
        for column, value in wanted.items():
            if column not in rows:
                raise NvretError(f"arms have no {column!r}, expected one of {', '.join(rows)}")
            values = value if isinstance(value, list) else [value]
            keep = rows[column].isin([v for v in values if v is not None])
            rows = rows[keep | (rows[column].isna() & (None in values))]
        return list(rows.index)

    def values(
        self, label: str, metric: str = METRIC, datasets: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """For each test set that the arm is tested on (or the named ones) its (S, Q) scores."""
        scores = self.scores[metric][label].to_numpy(np.float64)
        homes = self.scores.index.get_level_values("dataset")
        sets = {}
        for name in datasets or self.datasets:
            values = scores[homes == name].T
            there = ~np.isnan(values)
            values = values[there.any(1)][:, there.any(0)]  # a base model has one seed
            if values.size:
                sets[name] = values
        return sets

    def contrast(
        self,
        weights: Mapping[str, float],
        datasets: Sequence[str] | None = None,
        metric: str = METRIC,
    ) -> dict[str, np.ndarray]:
        """The weighted sum of arms, paired by seed and query: (S, Q) of each test set they share.

        Args:
            weights: by label; 1 and -1 for the difference of two.
        """
        scores = {label: self.values(label, metric, datasets) for label in weights}
        shared = [name for name in datasets or self.datasets
                  if all(name in sets for sets in scores.values())]  # fmt: skip
        for name in shared:
            if len({sets[name].shape[1] for sets in scores.values()}) > 1:
                raise NvretError(f"{name}: {', '.join(weights)} cannot be paired by query")
        return {name: sum(weights[a] * scores[a][name] for a in weights) for name in shared}

    def estimate(
        self, weights: Mapping[str, float], datasets: Sequence[str] | None = None
    ) -> Estimate:
        """The mean of a ``contrast`` over the test sets."""
        return statistics.estimate(list(self.contrast(weights, datasets).values()))

    def difference(self, a: str, b: str, datasets: Sequence[str] | None = None) -> Interval:
        """Mean over the shared test sets of arm ``a`` less arm ``b``, paired by seed and query."""
        return self.estimate({a: 1, b: -1} if a != b else {a: 0}, datasets).interval

    def best_on_dev(self, labels: Sequence[str]) -> str:
        """The best of these arms on the development split."""
        scores = {label: self.values(label, METRIC, [self.dev]) for label in labels}
        if not scores or not all(scores.values()):
            raise NvretError(f"no scores on the development split {self.dev} for {labels[:2]}")
        return max(labels, key=lambda label: scores[label][self.dev].mean())

    def save(self, path: Path) -> None:
        """Write arms and scores as Parquet."""
        flat = self.scores.copy()
        flat.columns = ["|".join(map(str, column)) for column in flat.columns]
        table = pa.Table.from_pandas(flat.reset_index(), preserve_index=False)
        facts = {
            "dev": self.dev,
            "primary": self.primary,
            "arms": self.arms.reset_index().to_dict("list"),
            "corpora": self.corpora.to_dict("list"),
            "differing": self.differing.round(4).to_dict("split"),
        }
        # Where pandas has its `attrs`, which it would copy with each column that it writes
        metadata = table.schema.metadata | {"PANDAS_ATTRS": json.dumps(facts)}
        with store.atomic_file(path) as partial:
            pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote.

        Raises:
            NvretError: no such file, or one of an earlier version.
        """
        if not path.is_file():
            raise NvretError(f"{path}: no such file; run the profile first")
        flat = pd.read_parquet(path)
        attrs, flat.attrs = flat.attrs, {}  # pandas copies them with each selection
        if missing := {"primary", "corpora", "differing"} - set(attrs):
            raise NvretError(f"{path} has no {', '.join(sorted(missing))}; run the profile again")
        scores = flat.set_index(["dataset", "query_id"])
        keys = [name.split("|") for name in scores.columns]
        scores.columns = pd.MultiIndex.from_tuples(
            [(metric, arm, int(seed)) for metric, arm, seed in keys], names=[None, "arm", "seed"]
        )
        arms = pd.DataFrame(attrs["arms"]).set_index("arm")
        corpora = pd.DataFrame(attrs["corpora"], columns=CORPORA)
        differing = pd.DataFrame(**attrs["differing"])
        logs = pd.DataFrame()
        return cls(arms, scores, logs, attrs["dev"], attrs["primary"], corpora, differing)


def collapsed(
    found: Evaluation, dataset: RetrievalDataset, *, k: Sequence[int] = (10,)
) -> Evaluation:
    """The same ranking scored again, with each near-duplicate cluster as one passage.

    Only the best-ranked passage of a cluster stands in the ranking, and it is as relevant as the
    most relevant of the cluster: an unlabelled copy of the answer counts as the answer.

    Args:
        found: of ``dataset``, whose corpus has the column ``cluster``.
    """
    row, names = pd.factorize(dataset.corpus["cluster"].to_numpy())
    ranked = evaluation.in_order(dataset, *found.ranking)
    ranked = np.where(ranked < 0, -1, row[ranked])
    apart = ranked + 1 + (len(names) + 1) * np.arange(len(ranked))[:, None]
    kept, first = np.full_like(ranked, -1), np.unique(apart, return_index=True)[1]
    kept.flat[first] = ranked.flat[first]
    kept = np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable"), 1)
    columns = metrics(*evaluation.graded(dataset, kept, row), sorted(k))
    return Evaluation(dataset.name, pa.table({"query_id": found.scores["query_id"]} | columns))
