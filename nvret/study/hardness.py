"""Hardness and cleanliness: methods at the same hardness, or the same share of false negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from nvret.analysis import statistics
from nvret.analysis.statistics import Interval
from nvret.study import tables
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

STEPS = 21  # levels of hardness at which two families are compared


def against_hardness(results: Results, mined: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row for each arm that mines: points over the reference, hardness, known false negatives.

    Arms that differ from the student's own setting in more than the method are left out. The
    arguments are those of ``sweep``; the reference itself has a row, of 0 points.
    """
    arms = results.arms.loc[_plain(results.arms), ["student", "method", "family", "parameter"]]
    own = {label: f"{student}: {reference}" for label, student in arms["student"].items()}
    rows = {a: tables.points(results.difference(a, b)) for a, b in own.items() if b in arms.index}
    table = arms.join(pd.DataFrame(rows).T).rename(columns={"value": "difference"})
    table = table.join([tables.hardness(mined), mined["share found"]])
    table["false"] = mined.get("in the positive's cluster")
    return table.dropna(subset=["difference", "hardness"]).rename_axis("arm").reset_index()


def equal_hardness(
    results: Results,
    mined: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    of: Literal["family", "teacher"] = "family",
    by: str = "hardness",
) -> pd.DataFrame:
    """Each first family of methods less the second where both are equally hard, in points.

    A family that is swept has a score at every hardness between those of its arms: the linear
    interpolation of its two neighbours. It is a weighted sum of arms, and so is the mean over
    `STEPS` values that divide the range which both families cover. The difference of two families
    is therefore one contrast, with the interval of any other.

    Args:
        mined: of ``Study.mined``; a row an arm.
        pairs: names of ``nvret.methods.BY_NAME``, or of teachers.
        of: what they name; teachers are compared by their arms of the percentage rule.
        by: "hardness", or a column of ``mined``, such as "in the positive's cluster": then the
            families are compared at an equal share of false negatives.
    Returns:
        student, difference, by, from and to (the range), arms (of both families that have a
        weight), ``least found`` (the smallest share of the asked-for negatives that one of them
        found), value, low, high. Without a common range the last three are NaN.
    """
    if by != "hardness" and by not in mined:
        raise NvretError(f"by: mined has no column {by!r}, only {', '.join(mined)}")
    level = tables.hardness(mined) if by == "hardness" else mined[by]
    rows = []
    for student in dict.fromkeys(results.arms["student"]):
        for pair in pairs:
            lines = [_line(results, level, student, of, name) for name in pair]
            if min(map(len, lines)) == 0:
                continue
            low = max(line.min() for line in lines)
            high = min(line.max() for line in lines)
            row = {"student": student, "difference": " − ".join(pair), "by": by}
            row |= {"from": low, "to": high, "arms": 0, "least found": np.nan}
            row |= dict.fromkeys(Interval._fields, np.nan)
            if low < high:
                first, second = (_weights(line, np.linspace(low, high, STEPS)) for line in lines)
                weights = first.sub(second, fill_value=0)
                used = weights.index[weights != 0]
                row |= {"arms": len(used), "least found": mined.loc[used, "share found"].min()}
                row |= tables.points(results.estimate(weights[used].to_dict()).interval)
            rows.append(row)
    return pd.DataFrame(rows)


def _line(results: Results, level: pd.Series, student: str, of: str, name: str) -> pd.Series:
    """The levels of a family's arms that differ from the student's own setting in nothing else, or
    of a teacher's that differ in the percentage alone."""
    if of == "teacher":
        asked = {"teacher": name, "family": "perc-pos", "ensemble": None, "treatment": None}
        own = {key: asked[key] for key in asked if key in results.arms}
        return level.reindex(results.find(student=student, **own)).dropna()
    arms = results.arms.loc[results.find(student=student, family=name)]
    return level.reindex(arms.index[_plain(arms)]).dropna()


def _plain(arms: pd.DataFrame) -> pd.Series:
    """Which arms have the student's own setting: the label names nothing but the method."""
    return arms.index == arms["student"] + ": " + arms["method"]


def _weights(line: pd.Series, at: np.ndarray) -> pd.Series:
    """Of each arm in the mean over these levels; arms of the same level share theirs.

    >>> _weights(pd.Series({"a": 0.0, "b": 1.0, "c": 1.0}), np.array([0.5, 0.75])).to_dict()
    {'a': 0.375, 'b': 0.3125, 'c': 0.3125}
    """
    levels, group, count = np.unique(line, return_inverse=True, return_counts=True)
    each = [np.interp(at, levels, row).mean() for row in np.eye(len(levels))]
    return pd.Series((np.array(each) / count)[group], line.index)


def causal(results: Results, treated: pd.DataFrame) -> pd.DataFrame:
    """Cleanliness or hardness: what is gained by replacing hidden positives, and by the placebo.

    Args:
        treated: of ``Study.treated``; a row an arm, with the columns train and "share left".
    Returns:
        for each training set and student the differences, in points of NDCG@10 and paired: each
        arm less naive mining, the oracle less the placebo (cleanliness at equal hardness), and the
        slope of the doses (what it costs that all hidden positives are left in). ``treatment`` is
        the arm's, or its method; ``left`` the share of naive mining's hidden positives that stay.
        ``p`` is Holm-adjusted over the rows of a training set and student.
    """
    arms = results.arms.loc[treated.index].join(treated["share left"].rename("left"))
    arms["treatment"] = arms["treatment"].fillna(arms["method"])
    rows, naive = [], tables.PLAIN["naive"]
    for (train, student), own in arms.groupby(["train", "student"], sort=False):
        label = {name: arm for arm, name in own["treatment"].items()}
        if naive not in label:
            continue
        left = own.set_index("treatment")["left"].astype(float)
        left[naive] = 1.0
        contrasts = {(name, naive): {arm: 1.0, label[naive]: -1.0}
                     for name, arm in label.items() if name != naive}  # fmt: skip
        if {"oracle", "placebo"} <= set(label):
            contrasts["oracle", "placebo"] = {label["oracle"]: 1.0, label["placebo"]: -1.0}
        doses = left.drop("placebo", errors="ignore").dropna()
        if len(doses) > 2:
            weights = (doses - doses.mean()) / ((doses - doses.mean()) ** 2).sum()
            contrasts["slope of the doses", ""] = {label[d]: w for d, w in weights.items()}
        for (name, less), weights in contrasts.items():
            found = results.estimate(weights)
            points = tables.points(found.interval).values()
            rows.append((train, student, name, less, left.get(name, np.nan), *points, found.p))
    columns = ["train", "student", "treatment", "less", "left", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p"] = table.groupby(["train", "student"])["p"].transform(statistics.holm)
    return table


MEANINGS = {  # (treatment, less) of ``causal`` -> what the difference is
    ("oracle", tables.PLAIN["naive"]): "cleaner and easier: oracle − naive",
    ("placebo", tables.PLAIN["naive"]): "easier alone: placebo − naive",
    ("oracle", "placebo"): "cleanliness at equal hardness: oracle − placebo",
    ("slope of the doses", ""): "all hidden positives left in: slope of the doses",
}


def readings(equal: pd.DataFrame, causal: pd.DataFrame) -> pd.DataFrame:
    """What ``equal_hardness`` and ``causal`` answer to the study's question, a row an answer."""
    first = equal.dropna(subset=["value"]).rename(columns={"value": "points"})
    first = first.assign(train="", question="at equal " + first["by"] + ": " + first["difference"])
    meant = [MEANINGS.get(key) for key in zip(causal["treatment"], causal["less"], strict=True)]
    second = causal.assign(question=meant).dropna(subset=["question"])
    second = second.rename(columns={"difference": "points"})
    columns = ["question", "student", "train", "points", "low", "high"]
    table = pd.concat([part[columns] for part in (first, second)], ignore_index=True)
    low, high = (table[end].round(9) for end in ("low", "high"))  # 0 but for the last bit
    words = np.select([low > 0, high < 0], ["above 0", "below 0"], "not told apart")
    return table.assign(reading=words)
