"""Tables of a comparison: means, paired differences, what was mined, and the paper beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from nvret.analysis import statistics
from nvret.data import RetrievalDataset
from nvret.study.config import Settings, project_root
from nvret.study.scores import Results
from nvret.utils import machine, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGE = "average"  # the mean over the test sets, each with the same weight
PACKAGES = [
    "datasets",
    "mteb",
    "numpy",
    "nvret",
    "pyarrow",
    "sentence-transformers",
    "torch",
    "transformers",
]


def means(results: Results, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """Mean and 95 % interval over seeds and queries, for each arm and test set.

    The average over the test sets gives each the same weight; the development split is not in it.
    """
    found = []
    for label in results.arms.index:
        sets = results.values(label, metric)
        dev = results.values(label, metric, [results.dev])
        for dataset, values in {**sets, AVERAGE: list(sets.values()), **dev}.items():
            interval = statistics.mean_interval(values)
            seeds = len(next(iter(sets.values())))
            found.append((label, dataset, metric, *interval, seeds))
    columns = ["arm", "dataset", "metric", "mean", "low", "high", "seeds"]
    return _with_arms(results, pd.DataFrame(found, columns=columns))


def differences(results: Results, reference: str, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """Each arm less its student's ``reference``, paired by seed and query.

    ``p`` is Holm-adjusted over the arms of a student that are compared on one test set.

    Args:
        reference: a label without the student, such as "Naive Top-K".
    """
    found = []
    for label, student in results.arms["student"].items():
        against = f"{student}: {reference}"
        if label == against or against not in results.arms.index:
            continue
        a, b = results.values(label, metric), results.values(against, metric)
        for dataset in [*a, AVERAGE]:
            pair = (
                (list(a.values()), list(b.values()))
                if dataset == AVERAGE
                else (a[dataset], b[dataset])
            )
            interval = statistics.paired_difference(*pair)
            p = statistics.p_value(*pair)
            found.append((label, dataset, metric, reference, *interval, p))
    columns = ["arm", "dataset", "metric", "reference", "difference", "low", "high", "p"]
    table = _with_arms(results, pd.DataFrame(found, columns=columns))
    table["p"] = table.groupby(["student", "dataset"])["p"].transform(
        lambda p: statistics.holm(p.tolist())
    )
    return table


def _with_arms(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The table with what its arms are; columns that are the same for all arms are left out."""
    arms = results.arms
    varied = [c for c in arms if c in ("student", "method") or arms[c].nunique(dropna=False) > 1]
    return table.merge(arms[varied], left_on="arm", right_index=True, how="left")


def mined(
    dataset: RetrievalDataset, tables: dict[str, pa.Table], num_negatives: int
) -> pd.DataFrame:
    """What was mined: how much of what was asked for, how near to the positive, how often above it.

    Args:
        dataset: what the tables were mined from. Where its corpus has the column ``cluster``,
            negatives that stand in the near-duplicate cluster of their positive are counted:
            derived false negatives.
        tables: negatives by method or arm.
        num_negatives: that were asked for, for each pair.
    """
    pairs = len(dataset.pairs[0])
    corpus = dataset.corpus
    clusters = None
    if "cluster" in corpus.column_names:
        ids, labels = corpus["id"].to_pylist(), corpus["cluster"].to_pylist()
        clusters = dict(zip(ids, labels, strict=True))
    found = []
    for method, table in tables.items():
        rows = table.select([c for c in table.column_names if c != "teacher"]).to_pandas()
        full = (rows.groupby(["query_id", "positive_id"]).size() >= num_negatives).sum()
        row = {
            "method": method,
            "pairs": pairs,
            "pairs short": pairs - int(full),
            "negatives": len(rows),
            "share found": len(rows) / (pairs * num_negatives),
            "mean score": rows["score"].mean(),
            "mean positive score": rows["positive_score"].mean(),
            "above the positive": (rows["score"] > rows["positive_score"]).mean(),
        }
        if clusters is not None:
            twin = rows["negative_id"].map(clusters) == rows["positive_id"].map(clusters)
            row["in the positive's cluster"] = twin.mean()
        found.append(row)
    return pd.DataFrame(found).set_index("method")


def dropped(tables: dict[str, pa.Table], reference: str) -> pd.Series:
    """For each method, the share of the reference's negatives that it does not take."""

    def keys(table: pa.Table) -> set[tuple[str, str, str]]:
        columns = (table[c].to_pylist() for c in ("query_id", "positive_id", "negative_id"))
        return set(zip(*columns, strict=True))

    naive = keys(tables[reference])
    return pd.Series({m: 1 - len(naive & keys(t)) / max(1, len(naive)) for m, t in tables.items()})


def paper_table(name: str) -> pd.DataFrame:
    """A table of the paper, in the schema of ``means``."""
    return pd.read_csv(project_root() / "results" / "paper" / f"{name}.csv")


def cells(table: pd.DataFrame, value: str, form: str = ".3f") -> pd.Series:
    """``value [low, high]`` of each row, for reading."""
    return table.apply(
        lambda row: f"{row[value]:{form}} [{row['low']:{form}}, {row['high']:{form}}]", axis=1
    )


def results_folder(settings: Settings) -> Path:
    """``results/<profile>``, the home of a profile's tables, figures and executed notebooks.

    ``$NVRET_RESULTS`` names another folder than the checkout's ``results``.
    """
    return Path(os.environ.get("NVRET_RESULTS") or project_root() / "results") / settings.profile


def scores_path(settings: Settings, study: str) -> Path:
    """Where a study's scores are kept: what its tables, figures and claims are computed from."""
    return results_folder(settings) / "scores" / f"{study}.parquet"


def save_table(settings: Settings, name: str, table: pd.DataFrame) -> None:
    """Write ``tables/<name>.csv``; six digits, which other machines reproduce (see the README)."""
    with store.atomic_file(results_folder(settings) / "tables" / f"{name}.csv") as partial:
        table.to_csv(partial, index=not isinstance(table.index, pd.RangeIndex), float_format="%.6f")


def save_figure(settings: Settings, name: str, figure: Figure) -> None:
    """Write ``figures/<name>.png``."""
    with store.atomic_file(results_folder(settings) / "figures" / f"{name}.png") as partial:
        figure.savefig(
            partial, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None}
        )


def provenance(settings: Settings, fingerprints: dict[str, str], seconds: float) -> dict[str, Any]:
    """What produced a profile's results."""
    root = project_root()
    return {
        "parameters": settings.model_dump(),
        "fingerprints": fingerprints,
        "versions": machine.versions(PACKAGES),
        "commit": machine.git(root, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(
            machine.git(root, "status", "--porcelain", "--", "nvret", "notebooks", "params")
        ),
        "hardware": machine.hardware(),
        "seconds": round(seconds),
    }


def save_provenance(settings: Settings, facts: dict[str, Any]) -> None:
    store.write_json(results_folder(settings) / "provenance.json", json.loads(json.dumps(facts)))
