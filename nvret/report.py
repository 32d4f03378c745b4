"""Tables of a comparison: means, paired differences, what was mined, and the paper beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import machine, mining, statistics, store
from nvret.params import Settings, project_root

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_STUDENT = "e5-large-unsupervised"
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


def seeds_by_queries(
    scores: pd.DataFrame, student: str, method: str, metric: str
) -> dict[str, np.ndarray]:
    """For each test set, the (S, Q) scores of one method."""
    rows = scores[scores["student"] == student]
    return {
        dataset: statistics.score_matrix(rows, dataset, [method], score=metric).values[0]
        for dataset in dict.fromkeys(rows["dataset"])
    }


def means(scores: pd.DataFrame, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """Mean and 95 % interval over seeds and queries, for each student, method and test set."""
    found = []
    for student, method in _models(scores):
        sets = seeds_by_queries(scores, student, method, metric)
        for dataset, values in {**sets, AVERAGE: list(sets.values())}.items():
            interval = statistics.mean_interval(values)
            seeds = len(next(iter(sets.values())))
            found.append((student, method, dataset, metric, *interval, seeds))
    columns = ["student", "method", "dataset", "metric", "mean", "low", "high", "seeds"]
    return pd.DataFrame(found, columns=columns)


def differences(scores: pd.DataFrame, reference: str, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """Each method less ``reference``, paired by seed and query.

    ``p`` is Holm-adjusted over the methods that are compared on one test set.
    """
    found = []
    for student, method in _models(scores):
        if method == reference:
            continue
        a = seeds_by_queries(scores, student, method, metric)
        b = seeds_by_queries(scores, student, reference, metric)
        for dataset in [*a, AVERAGE]:
            pair = (
                (list(a.values()), list(b.values()))
                if dataset == AVERAGE
                else (a[dataset], b[dataset])
            )
            interval = statistics.paired_difference(*pair)
            found.append((student, method, dataset, metric, *interval, statistics.p_value(*pair)))
    columns = ["student", "method", "dataset", "metric", "difference", "low", "high", "p"]
    table = pd.DataFrame(found, columns=columns)
    table["p"] = table.groupby(["student", "dataset"])["p"].transform(
        lambda p: statistics.holm(p.tolist())
    )
    table.insert(4, "reference", reference)
    return table


def mined(tables: dict[str, pa.Table], clusters: dict[str, int] | None = None) -> pd.DataFrame:
    """What each method mined: how much, how near to the positive, how often above it.

    Args:
        tables: negatives by method.
        clusters: near-duplicate cluster of each passage id, to count derived false negatives:
            negatives that stand in the cluster of their positive.
    """
    found = []
    for method, table in tables.items():
        facts = mining.provenance(table)
        rows = table.to_pandas()
        row = {
            "method": method,
            "pairs": facts["pairs"],
            "pairs short": facts["pairs_short"],
            "negatives": len(rows),
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


def paper_beside_ours(ours: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The paper's Table 3 and this run, each as points of NDCG@10 over its own ``reference``.

    The models and test sets differ, so that only the differences between methods compare.
    """
    paper = _paper_table("rq3_methods")
    columns = {}
    for source, table in {"paper": paper, "here": ours}.items():
        rows = table[(table["dataset"] == AVERAGE) & (table["metric"] == "ndcg_at_10")]
        for student, group in rows.groupby("student", sort=False):
            values = group.set_index("method")["mean"]
            columns[source, student] = 100 * (values - values[reference])
    return pd.DataFrame(columns).dropna(how="all", subset=[c for c in columns if c[0] == "here"])


def claims(scores: pd.DataFrame, student: str, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """The paper's findings as differences of the test sets' mean, measured here.

    A verdict is "reproduced" when the whole 95 % interval has the paper's sign, "not reproduced"
    when the whole of it has the other one, else "undecided".
    """
    labels = dict.fromkeys(scores.loc[scores["student"] == student, "method"])
    paper = _paper_table("rq3_methods")
    paper = paper[(paper["student"] == PAPER_STUDENT) & (paper["dataset"] == AVERAGE)]
    theirs = paper.drop_duplicates("method").set_index("method")["mean"]
    found = []
    for claim in _paper_table("claims").itertuples():
        pair = [_starting_with(labels, name) for name in (claim.better, claim.worse)]
        if None in pair:
            continue  # this profile leaves a method of the claim out
        sets = [list(seeds_by_queries(scores, student, m, metric).values()) for m in pair]
        interval = statistics.paired_difference(*sets)
        printed = [_starting_with(theirs.index, name) for name in (claim.better, claim.worse)]
        in_paper = theirs[printed[0]] - theirs[printed[1]]
        verdict = statistics.verdict(interval)
        found.append((claim.claim, student, in_paper, *interval, verdict))
    columns = ["claim", "student", "paper", "difference", "low", "high", "verdict"]
    return pd.DataFrame(found, columns=columns)


def _starting_with(labels: Iterable[str], start: str) -> str | None:
    return next((label for label in labels if label.startswith(start)), None)


def _paper_table(name: str) -> pd.DataFrame:
    return pd.read_csv(project_root() / "results" / "paper" / f"{name}.csv")


def _models(scores: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(scores["student"], scores["method"], strict=True)))


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
