"""Tables that answer one question each, from the scores of a study."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import ensembles, methods
from nvret.analysis import statistics
from nvret.data import RetrievalDataset
from nvret.study import report
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

METRIC = "ndcg_at_10"
PLAIN = {family: str(kind()) for family, kind in methods.BY_NAME.items()}  # the paper's settings


def sizes(dataset: RetrievalDataset) -> dict[str, float]:
    """Questions, passages, positives a question, and words of the texts."""
    words = [len(text.split()) for text in dataset.passages]
    return {
        "questions": dataset.queries.num_rows,
        "passages": dataset.corpus.num_rows,
        "positives a question": len(dataset.pairs[0]) / dataset.queries.num_rows,
        "words a question": float(np.mean([len(text.split()) for text in dataset.query_texts])),
        "words a passage": float(np.mean(words)),
        "words a passage, 95th percentile": float(np.percentile(words, 95)),
    }


def average_of(results: Results, label: str) -> float:
    """Mean of an arm's NDCG@10 over the test sets, each with the same weight."""
    return float(np.mean([values.mean() for values in results.values(label).values()]))


def chosen_on_dev(results: Results, labels: Sequence[str]) -> str:
    """Of these arms the one that does best on the development split."""
    scores = {label: results.values(label, METRIC, [results.dev]) for label in labels}
    if not scores or not all(scores.values()):
        raise NvretError(f"no scores on the development split {results.dev} for {labels[:2]}")
    return max(labels, key=lambda label: next(iter(scores[label].values())).mean())


def difference(results: Results, a: str, b: str) -> statistics.Interval:
    """Mean over the test sets of arm ``a`` less arm ``b``, paired by seed and query."""
    sets = results.values(a), results.values(b)
    shared = [name for name in sets[0] if name in sets[1]]
    return statistics.paired_difference(*([one[name] for name in shared] for one in sets))


def against(results: Results, reference: str, labels: Sequence[str]) -> pd.DataFrame:
    """Each arm less the reference."""
    rows = [
        {"arm": label, "less": reference, **difference(results, label, reference)._asdict()}
        for label in labels
        if label != reference
    ]
    return pd.DataFrame(rows)


def between(results: Results, labels: Sequence[str]) -> pd.DataFrame:
    """Every two arms; ``p`` is Holm-adjusted over all of them."""
    rows = []
    for a, b in itertools.combinations(labels, 2):
        sets = [list(results.values(label).values()) for label in (a, b)]
        p = statistics.p_value(*sets)
        rows.append({"arm": a, "less": b, **difference(results, a, b)._asdict(), "p": p})
    table = pd.DataFrame(rows)
    table["p"] = statistics.holm(table["p"].tolist())
    return table


def teacher_table(
    own: Mapping[str, Mapping[str, np.ndarray]], tests: Sequence[str], dev: str
) -> pd.DataFrame:
    """NDCG@10 of each teacher as a retriever, with its interval over the queries.

    Args:
        own: teacher -> test set -> (1, Q); of ``Workspace.teacher_scores``.
        tests: the sets that count in the average.
    """
    rows = []
    for teacher, scores in own.items():
        sets = {name: scores[name] for name in tests}
        for name, values in {**sets, report.AVERAGE: list(sets.values()), dev: scores[dev]}.items():
            interval = statistics.mean_interval(values)
            rows.append((teacher, name, METRIC, *interval))
    return pd.DataFrame(rows, columns=["teacher", "dataset", "metric", "mean", "low", "high"])


def teachers_and_students(results: Results, teachers: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A point a teacher and rule: its own NDCG@10, and its student's less the reference's.

    The rules are the paper's percentage, and the one that is best for this teacher on the
    development split.

    Args:
        teachers: of ``teacher_table``.
        reference: label of an arm.
    """
    own = teachers[teachers["dataset"] == report.AVERAGE].set_index("teacher")
    rows = []
    for name in own.index:
        labels = results.find(teacher=name, family="perc-pos", ensemble=None)
        rules = {"paper's 95 %": results.find(label=labels, method=PLAIN["perc-pos"])}
        rules["chosen on dev"] = [chosen_on_dev(results, labels)] if labels else []
        for rule, found in rules.items():
            for label in found:
                value, low, high = difference(results, label, reference)
                rows.append(
                    {"rule": rule, "teacher": name, "method": results.arms.at[label, "method"]}
                    | {f"teacher_{key}": own.at[name, key] for key in ("mean", "low", "high")}
                    | {"student": average_of(results, label)}
                    | {"difference": value, "low": low, "high": high}
                )
    return pd.DataFrame(rows)


def jaccard_table(tables: Mapping[str, Mapping[str, pa.Table]], depth: int = 4) -> pd.DataFrame:
    """Training set by training set, the Jaccard similarity of every two teachers' negatives."""
    rows = []
    for dataset, by_teacher in tables.items():
        names = list(by_teacher)
        matrix = ensembles.jaccard(list(by_teacher.values()), depth)
        for a, b in itertools.combinations(range(len(names)), 2):
            rows.append((names[a], names[b], dataset, matrix[a, b]))
    return pd.DataFrame(rows, columns=["teacher_a", "teacher_b", "dataset", "jaccard"])


def sweep(results: Results, mined: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a swept arm: points over the reference, negatives found, and known positives.

    Args:
        mined: of ``Study.mined``.
        reference: a label without the student.
    """
    rows = report.differences(results, reference)
    rows = rows[(rows["dataset"] == report.AVERAGE) & rows["parameter"].notna()]
    rows = rows.set_index("arm")[
        ["student", "method", "family", "parameter", "difference", "low", "high"]
    ]
    rows[["difference", "low", "high"]] *= 100
    rows["filled"] = mined["share found"]
    rows["false"] = mined["in the positive's cluster"]
    return rows.reset_index()


def best_of_families(results: Results) -> pd.DataFrame:
    """For each family of methods the value that is best on the development split."""
    rows = []
    arms = results.arms[results.arms["parameter"].notna()]
    for (student, family), group in arms.groupby(["student", "family"], sort=False):
        if len(group) < 2:
            continue
        label = chosen_on_dev(results, list(group.index))
        value = group.at[label, "parameter"]
        ends = group["parameter"].min(), group["parameter"].max()
        interval = statistics.mean_interval(list(results.values(label).values()))
        where = "an end" if value in ends else "inner"
        rows.append((student, family, label, value, where, *interval))
    columns = ["student", "family", "arm", "value", "optimum", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def setting(results: Results, label: str) -> str:
    """What an arm's label says beside student and method."""
    row = results.arms.loc[label]
    rest = label.removeprefix(f"{row['student']}: {row['method']}").removeprefix(", ")
    return rest or "as the profile says"


def plain(results: Results, student: str, group: str | None = None) -> dict[str, str]:
    """Family -> label of a student's arms with the paper's parameters, in one setting.

    Args:
        group: of ``setting``; default the student's own. A family that the profile sweeps without
            the paper's value is there with its first one.
    """
    group = group or "as the profile says"
    found: dict[str, str] = {}
    for label in results.find(student=student, family=list(methods.BY_NAME)):
        family, method = results.arms.loc[label, ["family", "method"]]
        if setting(results, label) == group and (family not in found or method == PLAIN[family]):
            found[family] = label
    return found


def orders(results: Results, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences of families, in points, for each student and setting that has both.

    Args:
        pairs: (family, family that is taken off).
    """
    rows = []
    for student in dict.fromkeys(results.arms["student"]):
        labels = results.find(student=student, family=list(methods.BY_NAME))
        for group in dict.fromkeys(setting(results, label) for label in labels):
            found = plain(results, student, group)
            for a, b in pairs:
                if a in found and b in found:
                    interval = difference(results, found[a], found[b])
                    points = {key: 100 * value for key, value in interval._asdict().items()}
                    rows.append(
                        {"student": student, "setting": group, "difference": f"{a} − {b}"} | points
                    )
    return pd.DataFrame(rows)


def by_twins(
    results: Results, test: RetrievalDataset, pairs: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """Differences in points on questions whose positive has a near-duplicate among the test
    passages, and on the others; in-domain test set, each student's own setting."""
    cluster = np.asarray(test.corpus["cluster"])
    labels, counts = np.unique(cluster, return_counts=True)
    many = set(labels[counts > 1].tolist())
    queries, passages = test.pairs
    names = test.queries["id"].to_pylist()
    twins = {names[q] for q, p in zip(queries, passages, strict=True) if cluster[p] in many}
    ids = results.scores.loc[test.name].index
    inside = np.array([name in twins for name in ids])
    rows = []
    for student in dict.fromkeys(results.arms["student"]):
        found = plain(results, student)
        for a, b in pairs:
            if a not in found or b not in found:
                continue
            x, y = (results.values(found[f], METRIC, [test.name])[test.name] for f in (a, b))
            if x.shape[1] != len(inside):
                continue  # a student that is tested on fewer questions
            for kind, mask in {"with a twin": inside, "without": ~inside}.items():
                if mask.sum() < 2:
                    continue
                interval = statistics.paired_difference(x[:, mask], y[:, mask])
                points = {key: 100 * value for key, value in interval._asdict().items()}
                rows.append({"student": student, "difference": f"{a} − {b}", "questions": kind,
                             "number": int(mask.sum()), **points})  # fmt: skip
    return pd.DataFrame(rows)


def beside_the_paper(results: Results, student: str, table: str = "rq3_methods") -> pd.DataFrame:
    """A table of the paper and this student's arms, each as points of NDCG@10 over naive top-k.

    The models and test sets differ, so that only the differences compare.
    """
    paper = report.paper_table(table)
    paper = paper[(paper["dataset"] == report.AVERAGE) & (paper["metric"] == METRIC)]
    columns = {}
    for name, group in paper.groupby("student", sort=False):
        values = group.drop_duplicates("method").set_index("method")["mean"]
        columns[f"paper: {name}"] = 100 * (values - values[PLAIN["naive"]])
    found = plain(results, student)
    rows = {}
    for label in found.values():
        value, low, high = (100 * x for x in difference(results, label, found["naive"]))
        name = results.arms.at[label, "method"]
        rows[name] = {"here": value, "low": low, "high": high}
    return pd.DataFrame(rows).T.join(pd.DataFrame(columns), how="left")


def wins(means: pd.DataFrame) -> pd.Series:
    """On how many test sets each arm has the highest mean."""
    rows = means[means["dataset"] != report.AVERAGE]
    best = rows.loc[rows.groupby("dataset")["mean"].idxmax(), "arm"]
    return best.value_counts().reindex(dict.fromkeys(means["arm"]), fill_value=0).rename("wins")
