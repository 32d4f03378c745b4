"""Figures of what is mined: texts, teachers' scores, ceilings, false negatives, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nvret import methods
from nvret.analysis import looks
from nvret.analysis.looks import AXES, BLACK, COLOURS, COLUMN_WIDTH, GREEN, GREY, YELLOW
from nvret.study.figures import band, intervals, legend, panels

DASHES = ["-", "--", ":"]
GREYS = {"hard": "#BBBBBB", "easy": "#E4E4E4"}
POINTS = "NDCG@10, points over {}\n(95 % interval, paired)"
RATES = [0, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 100]  # ticks, in percent


def lengths(texts: Mapping[str, Sequence[str]]) -> Figure:
    """Words a passage, a cumulative curve a set."""
    figure, (axis,) = panels(1, 3.4)
    for place, (name, passages) in enumerate(texts.items()):
        axis.ecdf([len(text.split()) for text in passages], linestyle=DASHES[place // 7 % 2],
                  markevery=0.1, markersize=4, label=name, **looks.of_line(place))  # fmt: skip
    axis.set(xlabel="words a passage", ylabel="passages of at most that many", xlim=(0, 500))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(fontsize=8)
    return figure


def score_scales(
    scores: Mapping[str, Mapping[str, np.ndarray]], thresholds: Mapping[str, float]
) -> Figure:
    """Each teacher's scores of positives, best candidates and random pairs, a panel a teacher.

    Args:
        scores: teacher -> "positive", "best candidate", "random passage" -> scores.
        thresholds: label -> a fixed score to draw in the panels whose scores are cosines.
    """
    figure, axes = panels(1, 1.0 + 1.25 * len(scores), rows=len(scores), grid=None)
    axes = axes.reshape(-1)
    for axis, (teacher, kinds) in zip(axes, scores.items(), strict=True):
        low, high = np.quantile(np.concatenate(list(kinds.values())), [0.001, 0.999])
        edges = np.linspace(low, high, 60)
        for colour, dash, (kind, values) in zip(COLOURS, DASHES, kinds.items(), strict=False):
            heights, _ = np.histogram(values, edges)
            axis.stairs(heights / heights.max(), edges, color=colour, linestyle=dash,
                        linewidth=1.5, label=kind)  # fmt: skip
            axis.axvline(np.median(values), color=colour, linewidth=0.7)
        for label, value in thresholds.items() if high <= 1.05 else ():
            axis.axvline(value, color=BLACK, linewidth=1)
            axis.annotate(label, (value, 0.9), fontsize=7, ha="right", rotation=90, va="top")
        axis.set_title(teacher, fontsize=9, loc="left")
        axis.set_yticks([])
    axes[-1].set_xlabel("teacher's score (cosine; BM25: sum)", fontsize=9)
    return legend(figure, axes[0], 3, y="density, scaled to its peak; thin line: median")


def survival(table: pd.DataFrame) -> Figure:
    """Share of the best candidates below the ceiling, a panel a family, a line a teacher.

    The columns are teacher, family, parameter, survive.
    """
    families = [family for family in AXES if family in set(table["family"])]
    figure, axes = panels(len(families), 3.2, 2.3 * len(families), sharey=True)
    for axis, family in zip(axes, families, strict=True):
        lines = table[table["family"] == family].groupby("teacher", sort=False)
        for place, (name, rows) in enumerate(lines):
            x = rows["parameter"] * (100 if family == "perc-pos" else 1)
            axis.plot(x, 100 * rows["survive"], label=name, markersize=3.5, linewidth=1.1,
                      **looks.of_line(place))  # fmt: skip
        axis.set_xlabel(AXES[family], fontsize=9)
    axes[0].set_ylabel("candidates that pass (%)", fontsize=9)
    return legend(figure, axes[0], 4)


def ceilings(candidates: pd.DataFrame, pos_score: float, rules: Sequence[methods.Method]) -> Figure:
    """Candidates of one query by score, with each method's ceiling drawn over them.

    Args:
        candidates: columns score (falling), passage, truth ("hard", "easy", or hatched).
        pos_score: of the positive.
        rules: methods; a shift is drawn as the ranks that it drops.
    """
    figure, (axis,) = panels(1, 1.3 + 0.33 * len(candidates), 1.45 * COLUMN_WIDTH, grid=None)
    rows = candidates.assign(place=range(len(candidates)))
    for truth, bars in rows.groupby("truth", sort=False):
        style = {"color": GREYS[truth]} if truth in GREYS else {"color": YELLOW, "hatch": "///"}
        axis.barh(bars["place"], bars["score"], height=0.6, label=truth, edgecolor="white", **style)
    axis.axvline(pos_score, color=GREEN, linewidth=2.5, label="the positive's score")
    for rule in rules:
        colour = looks.of_method(str(rule))["color"]
        limit = float(rule.ceiling(np.array([pos_score]))[0])
        if np.isfinite(limit):
            label = f"{rule}: below {limit:.2f}"
            axis.axvline(limit, color=colour, linestyle="--", linewidth=1.6, label=label)
        elif rule.skip:
            label = f"{rule}: dropped"
            axis.axhspan(-0.5, rule.skip - 0.5, color=colour, alpha=0.2, label=label, zorder=0)
    names = [f"{text[:52]}…  {rank}" for rank, text in enumerate(rows["passage"], 1)]
    axis.set_yticks(rows["place"], names)
    axis.invert_yaxis()
    axis.set(xlabel="teacher's score (cosine)", ylabel="candidate and its rank")
    axis.set_xlim(0, max(0.8, rows["score"].max()) * 1.05)
    return legend(figure, axis, 3)


def score_ratios(negatives: Mapping[str, pa.Table]) -> Figure:
    """Where each method's negatives lie: their score as a share of their positive's."""
    figure, (axis,) = panels(1, 3.4, grid=None)
    for label, table in negatives.items():
        scores, positives = (table[c].to_numpy() for c in ("score", "positive_score"))
        ratios = scores[positives > 0] / positives[positives > 0]
        if len(ratios):
            axis.ecdf(ratios, markevery=0.1, markersize=4, label=label, **looks.of_method(label))
    axis.axvline(1, color=GREY, linestyle=":", linewidth=1, label="the positive")
    axis.set(xlabel="teacher's score of the negative ÷ score of its positive", xlim=(0, 1.6))
    axis.set_ylabel("negatives at or below")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(fontsize=8)
    return figure


def frontier(table: pd.DataFrame) -> Figure:
    """Hard but true: the rate of known false negatives against the hardness of the others.

    A panel for each data set, a row of them for near-duplicates excluded and one for them kept; a
    line for each family of methods through its parameters, 95 % intervals. To the right and below
    is better. The table is that of ``Audit.frontier``.
    """
    names, ways = (list(dict.fromkeys(table[key])) for key in ("dataset", "near-duplicates"))
    figure, axes = panels(
        len(names), 0.8 + 2.8 * len(ways), 3.0 * len(names), rows=len(ways), sharey=True
    )
    for place, axis in np.ndenumerate(axes.reshape(len(ways), len(names))):
        way, name = ways[place[0]], names[place[1]]
        rows = table[(table["dataset"] == name) & (table["near-duplicates"] == way)]
        for family, group in rows.groupby(rows["method"].map(looks.method_key), sort=False):
            line = group.dropna(subset=["rate", "hardness"]).sort_values("hardness")
            style = looks.of_method(family) | {"linewidth": 1.1, "clip_on": False}
            intervals(axis, 100 * line["hardness"], line, "rate", 100, label=family, **style)
        _root_scale(axis, 100 * table["high"].max())
        axis.set_title(f"{name}, near-duplicates {way}", fontsize=9)
    x = "mean score of true negatives ÷ mean score of positives (%)"
    return legend(figure, axes.flat[0], 6, x, "known false negatives (%)")


def exclusion(table: pd.DataFrame, chosen: Sequence[str], paper: Mapping[str, float]) -> Figure:
    """The rate of each method with near-duplicates of the positives excluded and kept.

    A panel a data set. A thin line stands at half of naive mining's rate, which symmetry alone
    would leave under a ceiling at the positive's own score.

    Args:
        table: of ``Audit.frontier``.
        chosen: methods to draw, naive mining first.
        paper: data set -> the paper's rate of naive mining.
    """
    sets = table[table["method"].isin(chosen)].groupby("dataset", sort=False)
    figure, axes = panels(
        sets.ngroups, 1.3 + 0.4 * len(chosen), 3.0 * sets.ngroups, grid="x", sharey=True
    )
    for axis, (name, rows) in zip(axes, sets, strict=True):
        for place, (way, own) in enumerate(rows.groupby("near-duplicates", sort=False)):
            own = own.set_index("method").reindex(chosen)
            rate, low, high = (100 * own[column] for column in ("rate", "low", "high"))
            axis.errorbar(
                rate, np.arange(len(chosen)) + 0.3 * place - 0.15, xerr=[rate - low, high - rate],
                markersize=5, capsize=2, linewidth=1.2, linestyle="", **looks.of_line(place),
                label=f"near-duplicates {way}",
            )  # fmt: skip
            axis.axvline(
                rate.iloc[0] / 2, color=COLOURS[place], linewidth=0.8, linestyle=DASHES[1 + place],
                label=f"half of naive, {way}",
            )  # fmt: skip
        theirs = 100 * paper.get(name, np.nan)
        axis.plot(theirs, 0, "*", color=BLACK, markersize=10, label="the paper, none excluded")
        axis.set_title(name, fontsize=9)
        axis.set_xlim(left=0)
    axes[0].set_yticks(range(len(chosen)), chosen)
    axes[0].invert_yaxis()
    return legend(figure, axes[0], 3, "known false negatives (%), 95 % interval")


def against_hardness(table: pd.DataFrame, reference: str, *, by: str = "hardness") -> Figure:
    """``hardness.against_hardness``: a panel a student, a line a family through its parameters.

    Args:
        by: the column on the x-axis: "hardness", or "false", the share of known positives.
    """
    students = table.groupby("student", sort=False)
    figure, axes = panels(students.ngroups, 3.8, 3.4 * students.ngroups)
    for axis, (student, rows) in zip(axes, students, strict=True):
        axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
        for family, line in rows.dropna(subset=[by]).groupby("family", sort=False):
            line = line.sort_values(by)
            style = looks.of_method(line["method"].iloc[0]) | {"linewidth": 1.1, "elinewidth": 0.6}
            intervals(axis, 100 * line[by], line, "difference", label=family, **style)
        axis.set_title(student, fontsize=9)
    hardness = "mean score of negatives ÷ mean score of positives (%)"
    x = hardness if by == "hardness" else "known positives among them (%)"
    return legend(figure, axes[0], 6, x, POINTS.format(reference))


def dose_response(table: pd.DataFrame, reference: str) -> Figure:
    """What hidden positives among the negatives cost: a panel a training set, a line a student.

    Args:
        table: of ``hardness.causal``. The line runs through the doses; the placebo, which leaves in
            as many as naive mining, stands beside it as a diamond.
    """
    table = table[(table["less"] == reference) & table["left"].notna()]
    zero = {"treatment": reference, "left": 1.0, "difference": 0.0, "low": 0.0, "high": 0.0}
    table = pd.concat([table, table.drop_duplicates(["train", "student"]).assign(**zero)])
    sets = table.groupby("train", sort=False)
    figure, axes = panels(sets.ngroups, 3.6, 3.2 * sets.ngroups, sharey=True)
    students = list(dict.fromkeys(table["student"]))
    for axis, (name, rows) in zip(axes, sets, strict=True):
        axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
        for place, (student, own) in enumerate(rows.groupby("student", sort=False)):
            style = looks.of_line(students.index(student))
            apart = own["treatment"] == "placebo"
            line, placebo = own[~apart].sort_values("left"), own[apart]
            x = 100 * line["left"] + place  # side by side
            intervals(axis, x, line, "difference", label=student, **style)
            style |= {"marker": "D", "markerfacecolor": "white", "linestyle": ""}
            x, label = 100 * placebo["left"] + (5 + 3 * place), f"{student}, placebo"
            intervals(axis, x, placebo, "difference", label=label, **style)
        axis.set_title(f"trained on {name}", fontsize=9)
        axis.set_xticks([0, 25, 50, 75, 100])
    x = "hidden positives left among the negatives (%)"
    return legend(figure, axes[0], 4, x, POINTS.format(reference))


def by_rank(table: pd.DataFrame) -> Figure:
    """``Audit.by_rank``: a line a data set and way, with its 95 % band."""
    figure, (axis,) = panels(1, 3.4)
    sets = list(dict.fromkeys(table["dataset"]))
    for (name, way), rows in table.groupby(["dataset", "near-duplicates"], sort=False):
        percent = 100 * rows[["rate", "low", "high"]].rename(columns={"rate": "value"})
        style = looks.of_line(sets.index(name)) | {"linestyle": "-" if way == "excluded" else "--"}
        label = f"{name}, near-duplicates {way}"
        band(axis, rows["rank"], percent, label=label, **style)
    axis.set(xlabel="rank of the candidate", ylabel="known positives (%)")
    _root_scale(axis, 100 * table["high"].max())
    axis.legend(fontsize=8)
    return figure


def _root_scale(axis: Axes, highest: float) -> None:
    """A square-root axis from 0: small rates are told apart, and 0 has a place."""
    axis.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axis.set_ylim(0, 1.05 * highest)
    steps = [step for step in RATES if step <= max(highest, 1)]
    axis.set_yticks(steps, [f"{step:g}" for step in steps])


def judges(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """``Audit.curves``: what a judge catches at each threshold, and throws out with it."""
    figure, axes = panels(len(curves), 3.4, 3.0 * len(curves), sharey=True)
    for axis, (name, lines) in zip(axes, curves.items(), strict=True):
        for place, (judge, line) in enumerate(lines.items()):
            axis.step(
                100 * np.r_[0, line["removed"]], 100 * np.r_[0, line["recall"]], where="post",
                color=COLOURS[place % 7], linestyle=DASHES[place % 3], linewidth=1.5, label=judge,
            )  # fmt: skip
        axis.plot([0, 100], [0, 100], color=GREY, linewidth=0.8)
        axis.set_title(name, fontsize=9)
    caught = "known positives caught (%)"
    return legend(figure, axes[0], 4, "other negatives thrown out (%)", caught)


def scaling(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    points: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    xlabel: str,
    held_out: str | None = None,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """Seconds against a size on logarithmic axes: a model's lines and the measured points.

    Args:
        lines, points: label -> sizes and seconds, of the model and as measured.
        held_out: label whose points the model was not fitted on; they are drawn as stars.
        mark: a size to draw a vertical line at, and its name.
    """
    figure, (axis,) = panels(1, 3.8)
    for place, (label, (sizes, seconds)) in enumerate(lines.items()):
        style = looks.of_line(place)
        axis.plot(sizes, seconds, color=style["color"], linewidth=1.3, label=label,
                  linestyle=DASHES[place // 3 % 3])  # fmt: skip
        if label in points:
            star = {"marker": "*", "markersize": 14} if label == held_out else {"markersize": 5}
            axis.plot(*points[label], **style | {"linestyle": ""} | star)
    if mark is not None:
        axis.axvline(mark[0], color=GREY, linewidth=1, linestyle=":", label=mark[1])
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="time (seconds)")
    axis.legend(fontsize=8)
    return figure
