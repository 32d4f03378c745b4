"""Figures of what is mined: texts, teachers' scores, ceilings, false negatives, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvret import methods
from nvret.analysis import looks
from nvret.analysis.looks import AXES, BLACK, COLOURS, COLUMN_WIDTH, GREEN, GREY, YELLOW
from nvret.study.figures import panel, panels

DASHES = ["-", "--", ":"]


def lengths(texts: Mapping[str, Sequence[str]]) -> Figure:
    """Words a passage, a cumulative curve a set."""
    figure, axis = panel(3.4, grid=True)
    for place, (name, passages) in enumerate(texts.items()):
        words = np.sort([len(text.split()) for text in passages])
        share = 100 * np.arange(1, len(words) + 1) / len(words)
        axis.plot(words, share, linestyle=DASHES[place // 7 % 2], markevery=0.1, markersize=4,
                  label=name, **looks.of_line(place))  # fmt: skip
    axis.set(xlabel="words a passage", ylabel="passages of at most that many (%)", xlim=(0, 500))
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
    count = len(scores)
    figure, axes = panels(1, 1.0 + 1.25 * count, COLUMN_WIDTH, rows=count, grid=None)
    axes = axes.reshape(-1)
    for axis, (teacher, kinds) in zip(axes, scores.items(), strict=True):
        low, high = (np.quantile(np.concatenate(list(kinds.values())), q) for q in (0.001, 0.999))
        edges = np.linspace(low, high, 60)
        for colour, dash, (kind, values) in zip(COLOURS, DASHES, kinds.items(), strict=False):
            heights, _ = np.histogram(values, edges, density=True)
            axis.stairs(heights / heights.max(), edges, color=colour, linestyle=dash,
                        linewidth=1.5, label=kind)  # fmt: skip
            axis.axvline(np.median(values), color=colour, linewidth=0.7)
        if high <= 1.05:
            for label, value in thresholds.items():
                axis.axvline(value, color=BLACK, linewidth=1)
                axis.annotate(label, (value, 0.9), fontsize=7, ha="right", rotation=90, va="top")
        axis.set_title(teacher, fontsize=9, loc="left")
        axis.set_yticks([])
    axes[0].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 1.55), ncols=3)
    axes[-1].set_xlabel("teacher's score (cosine; BM25: sum)", fontsize=9)
    figure.supylabel("density, scaled to its peak; thin line: median", fontsize=9)
    return figure


def survival(table: pd.DataFrame) -> Figure:
    """Share of the best candidates below the ceiling, a panel a family, a line a teacher.

    Args:
        table: columns teacher, family, parameter, survive.
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
    return _with_legend(figure, axes[0], 4)


def ceilings(
    scores: Sequence[float],
    names: Sequence[str],
    truths: Sequence[str],
    pos_score: float,
    rules: Sequence[methods.Method],
) -> Figure:
    """Candidates of one query by score, with each method's ceiling drawn over them.

    Args:
        scores: (N,) of the candidates, falling.
        names: (N,) labels of the candidates.
        truths: (N,) what they are in truth; answers are drawn hatched.
        pos_score: of the positive.
        rules: methods; a shift is drawn as the ranks that it drops.
    """
    figure, axis = panel(1.3 + 0.33 * len(scores), 1.45 * COLUMN_WIDTH)
    places = np.arange(len(scores))
    for truth in dict.fromkeys(truths):
        bars = np.array([one == truth for one in truths])
        answers = truth.startswith("answers")
        axis.barh(
            places[bars], np.asarray(scores)[bars], height=0.6, label=truth, edgecolor="white",
            color=YELLOW if answers else "#BBBBBB" if truth == "hard" else "#E4E4E4",
            hatch="///" if answers else None,
        )  # fmt: skip
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
    axis.set_yticks(places, [f"{name}  {rank}" for rank, name in enumerate(names, 1)], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="teacher's score (cosine)", xlim=(0, max(0.8, *scores) * 1.05))
    axis.set_ylabel("candidate and its rank")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def score_ratios(negatives: Mapping[str, pa.Table]) -> Figure:
    """Where the mined negatives lie: their score as a share of their positive's.

    Args:
        negatives: label of a method -> table.
    """
    figure, axis = panel(3.4)
    grid = np.linspace(0, 1.6, 400)
    for label, table in negatives.items():
        scores, positives = (table[c].to_numpy() for c in ("score", "positive_score"))
        ratio = np.sort(scores[positives > 0] / positives[positives > 0])
        if len(ratio) == 0:
            continue
        share = 100 * np.searchsorted(ratio, grid, side="right") / len(ratio)
        axis.plot(grid, share, markevery=40, markersize=4, label=label, **looks.of_method(label))
    axis.axvline(1, color=GREY, linestyle=":", linewidth=1)
    axis.annotate("the positive", (1, 2), fontsize=8, color="#555555", rotation=90, ha="right")
    axis.set(
        xlabel="teacher's score of the negative ÷ score of its positive",
        ylabel="negatives at or below (%)",
        xlim=(0, 1.6),
        ylim=(0, 101),
    )
    axis.legend(fontsize=8)
    return figure


def overlap(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Heat map of the Jaccard similarity between the negatives of each two teachers.

    Args:
        matrix: (T, T) in [0, 1].
        names: T teachers.
    """
    size = 1.6 + 0.75 * len(names)
    figure, axis = panel(max(3.4, size - 0.6), max(4.2, size))
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, matrix)
    image = axis.imshow(shown, cmap="cividis", vmin=0, vmax=max(0.5, np.nanmax(shown)))
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            light = value > 0.6 * image.norm.vmax
            axis.annotate(f"{value:.2f}", (column, row), ha="center", va="center", fontsize=8,
                          color="black" if light else "white")  # fmt: skip
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(image, ax=axis, label="Jaccard similarity")
    axis.set_title(title, fontsize=10)
    return figure


def frontier(table: pd.DataFrame) -> Figure:
    """Hard but true: the rate of known false negatives against the hardness of the others.

    A panel for each data set; a line for each family of methods through its parameters, 95 %
    intervals. To the right and below is better.

    Args:
        table: columns dataset, method, rate, low, high, hardness; shares.
    """
    names = list(dict.fromkeys(table["dataset"]))
    figure, axes = panels(len(names), 3.6, 3.0 * len(names), sharey=True)
    for axis, (name, rows) in zip(axes, table.groupby("dataset", sort=False), strict=True):
        for family, group in rows.groupby(rows["method"].map(looks.method_key), sort=False):
            line = group.dropna(subset=["rate", "hardness"]).sort_values("hardness")
            rate, low, high = (100 * line[column] for column in ("rate", "low", "high"))
            axis.errorbar(
                100 * line["hardness"], rate, yerr=[rate - low, high - rate], markersize=5,
                capsize=2, linewidth=1.1, label=family, clip_on=False, **looks.of_method(family),
            )  # fmt: skip
        _root_scale(axis, 100 * table["high"].max())
        axis.set_title(name, fontsize=9)
    figure.supxlabel("mean score of true negatives ÷ mean score of positives (%)", fontsize=9)
    figure.supylabel("known false negatives (%)", fontsize=9)
    return _with_legend(figure, axes[0], 6)


def by_rank(table: pd.DataFrame) -> Figure:
    """The share of known positives at each rank of the teacher's ranking, with its 95 % band.

    Args:
        table: columns dataset, rank, rate, low, high; shares.
    """
    figure, axis = panel(3.4)
    for place, (name, rows) in enumerate(table.groupby("dataset", sort=False)):
        rate, low, high = (100 * rows[column] for column in ("rate", "low", "high"))
        style = looks.of_line(place)
        axis.fill_between(rows["rank"], low, high, color=style["color"], alpha=0.2)
        axis.plot(rows["rank"], rate, markersize=4, linewidth=1.2, label=name, **style)
    axis.set(xlabel="rank of the candidate", ylabel="known positives (%)")
    _root_scale(axis, 100 * table["high"].max())
    axis.legend(fontsize=8)
    return figure


def judges(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """What a judge catches at each threshold, against what it throws out with it.

    Args:
        curves: data set -> judge -> columns recall and removed, shares (`judge_quality.curve`).
    """
    figure, axes = panels(len(curves), 3.4, 3.0 * len(curves), sharey=True)
    colours = [BLACK, *COLOURS[:-1]]
    for axis, (name, lines) in zip(axes, curves.items(), strict=True):
        for place, (judge, line) in enumerate(lines.items()):
            axis.step(
                100 * np.r_[0, line["removed"]], 100 * np.r_[0, line["recall"]], where="post",
                color=colours[place % 7], linestyle=DASHES[place % 3], linewidth=1.5, label=judge,
            )  # fmt: skip
        axis.plot([0, 100], [0, 100], color="#999999", linewidth=0.8)
        axis.set_title(name, fontsize=9)
    figure.supxlabel("other negatives thrown out (%)", fontsize=9)
    figure.supylabel("known positives caught (%)", fontsize=9)
    return _with_legend(figure, axes[0], 4)


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
        lines: label -> sizes and seconds of the model.
        points: label (of a line) -> sizes and seconds that were measured.
        held_out: label whose points the model was not fitted on; they are drawn as stars.
        mark: a size to draw a vertical line at, and what to write beside it.
    """
    figure, axis = panel(3.8, grid=True)
    for place, (label, (sizes, seconds)) in enumerate(lines.items()):
        style = looks.of_line(place)
        axis.plot(sizes, seconds, color=style["color"], linewidth=1.3, label=label,
                  linestyle=DASHES[place // 3 % 3])  # fmt: skip
        if label in points:
            star = {"marker": "*", "markersize": 14} if label == held_out else {"markersize": 5}
            axis.plot(*points[label], **style | {"linestyle": ""} | star)
    if mark is not None:
        axis.axvline(mark[0], color=GREY, linewidth=1, linestyle=":")
        axis.annotate(
            mark[1], (mark[0], 0.03), xycoords=("data", "axes fraction"), fontsize=8,
            color="#555555", ha="right", xytext=(-4, 0), textcoords="offset points",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="time (seconds)")
    axis.legend(fontsize=8)
    return figure


def _with_legend(figure: Figure, axis: Axes, columns: int) -> Figure:
    """The labels of one panel, above all of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=columns)
    return figure


def _root_scale(axis: Axes, highest: float) -> None:
    """A square-root axis from 0: small rates are told apart, and 0 has a place."""
    axis.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axis.set_ylim(0, 1.05 * highest)
    steps = [0, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 100]
    steps = [step for step in steps if step <= max(highest, 1)]
    axis.set_yticks(steps, [f"{step:g}" for step in steps])
    axis.grid(linewidth=0.3)
