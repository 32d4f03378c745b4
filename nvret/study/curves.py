"""Figures of sweeps, of teachers, and of how two teachers' negatives overlap."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from nvret.study.figures import COLUMN_WIDTH, style

AXES = {  # family of methods -> what its parameter is called
    "shifted": "ranks dropped (N)",
    "abs": "threshold (cosine)",
    "margin-pos": "margin (cosine)",
    "perc-pos": "percentage of the positive (%)",
}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*"


def sweeps(table: pd.DataFrame, reference: str, best: Sequence[str]) -> Figure:
    """NDCG@10, survival and false negatives against each method's parameter, a column a method.

    Args:
        table: of ``findings.sweep``.
        reference: what the differences are to.
        best: labels of the arms that were chosen on the development split; drawn as stars.
    """
    families = [family for family in AXES if family in set(table["family"])]
    figure, axes = plt.subplots(
        3, len(families), sharey="row", sharex="col", squeeze=False, layout="constrained",
        figsize=(max(COLUMN_WIDTH, 2.3 * len(families)), 5.6), height_ratios=[2, 1, 1],
    )  # fmt: skip
    for column, family in enumerate(families):
        rows = table[table["family"] == family].sort_values("parameter")
        x = rows["parameter"] * (100 if family == "perc-pos" else 1)
        colour, marker = style(str(rows["method"].iloc[0]))
        top, middle, bottom = axes[:, column]
        top.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
        top.plot(x, rows["difference"], color=colour, marker=marker, markersize=4, linewidth=1.3)
        chosen = rows["arm"].isin(best)
        top.plot(x[chosen], rows["difference"][chosen], "*", color="#000000", markersize=11)
        top.axhline(0, color="#D55E00", linestyle=":", linewidth=1.2)
        for axis, name in ((middle, "filled"), (bottom, "false")):
            axis.plot(x, 100 * rows[name], color=colour, marker=marker, markersize=3, linewidth=1)
        bottom.set_xlabel(AXES[family], fontsize=9)
        if family == "shifted":
            top.set_xscale("symlog", linthresh=1)
            bottom.xaxis.set_major_formatter("{x:g}")
        for axis in (top, middle, bottom):
            axis.tick_params(labelsize=8)
            axis.grid(linewidth=0.3)
    for axis in axes[1:, 0]:
        axis.set_ylim(bottom=0)
    labels = ("NDCG@10, points,\n95 % interval", "negatives\nfound (%)", "known\npositives (%)")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    figure.suptitle(
        f"Points over {reference} (dotted), paired; star: chosen on the development split",
        fontsize=9,
    )
    return figure


def lines(table: pd.DataFrame, *, x: str, by: str, xlabel: str, reference: str) -> Figure:
    """Points of NDCG@10 over the reference against a number, a line for each value of ``by``.

    Args:
        table: of ``report.differences``, rows of one student and test set.
        reference: its name.
    """
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.6), layout="constrained")
    for place, (name, rows) in enumerate(table.groupby(by, sort=False)):
        rows = rows.sort_values(x)
        value, low, high = (100 * rows[key] for key in ("difference", "low", "high"))
        colour, marker = COLOURS[place % 7], MARKERS[place % 7]
        axis.fill_between(rows[x], low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(rows[x], value, color=colour, marker=marker, markersize=5, label=name)
    axis.axhline(0, color="#777777", linestyle=":", label=reference)
    axis.set(xlabel=xlabel, ylabel="NDCG@10, points, 95 % interval")
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8)
    return figure


def teachers(table: pd.DataFrame, reference: str) -> Figure:
    """What a student gains from its teacher's negatives against the teacher's own NDCG@10.

    Args:
        table: of ``findings.teachers_and_students``.
        reference: what the student's points are counted from.
    """
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 4.2), layout="constrained")
    axis.axhline(0, color="#777777", linewidth=1, linestyle=":")
    rules = list(dict.fromkeys(table["rule"]))
    for place, rule in enumerate(rules):
        rows = table[table["rule"] == rule]
        colour, marker = COLOURS[place % 7], MARKERS[place % 7]
        middle = rows["teacher_mean"].to_numpy()
        aside = middle + 0.002 * (place - (len(rules) - 1) / 2)
        value = 100 * rows["difference"].to_numpy()
        axis.errorbar(
            aside, value,
            xerr=[middle - rows["teacher_low"], rows["teacher_high"] - middle],
            yerr=[value - 100 * rows["low"], 100 * rows["high"] - value],
            fmt=marker, color=colour, markersize=6, capsize=2, linewidth=1, label=rule,
        )  # fmt: skip
    names = [
        axis.annotate(
            name, (rows["teacher_mean"].iloc[0], 100 * rows["high"].max()), fontsize=8,
            ha="center", xytext=(0, 5), textcoords="offset points",
        )
        for name, rows in table.groupby("teacher", sort=False)
    ]  # fmt: skip
    axis.set(
        xlabel="teacher's own NDCG@10 (95 % interval)",
        ylabel=f"student's NDCG@10, points over\n{reference} (95 % interval, paired)",
    )
    axis.margins(x=0.12, y=0.12)
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8)
    _apart(figure, names)
    return figure


def _apart(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Move labels up until none of them lies over an earlier one."""
    figure.canvas.draw()
    for place, label in enumerate(labels):
        for other in sorted(labels[:place], key=lambda earlier: earlier.get_window_extent().y0):
            own, taken = label.get_window_extent(), other.get_window_extent()
            if own.overlaps(taken):
                across, up = label.xyann
                label.xyann = across, up + (taken.y1 - own.y0) * 72 / figure.dpi + 1


def overlap(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Heat map of the Jaccard similarity between the negatives of each two teachers.

    Args:
        matrix: (T, T) in [0, 1].
        names: T teachers.
    """
    size = 1.6 + 0.75 * len(names)
    figure, axis = plt.subplots(figsize=(max(4.2, size), max(3.4, size - 0.6)),
                                layout="constrained")  # fmt: skip
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


def score_scales(scores: dict[str, dict[str, np.ndarray]], bounds: dict[str, float]) -> Figure:
    """Each teacher's scores of positives, best candidates and random pairs, a panel a teacher.

    Args:
        scores: teacher -> "positive", "best candidate", "random passage" -> scores.
        bounds: label -> a fixed threshold to draw in the panels whose scores are cosines.
    """
    figure, axes = plt.subplots(
        len(scores), 1, squeeze=False, layout="constrained",
        figsize=(COLUMN_WIDTH, 1.0 + 1.25 * len(scores)),
    )  # fmt: skip
    looks = {"positive": "-", "best candidate": "--", "random passage": ":"}
    for axis, (teacher, kinds) in zip(axes[:, 0], scores.items(), strict=True):
        low, high = (np.quantile(np.concatenate(list(kinds.values())), q) for q in (0.001, 0.999))
        edges = np.linspace(low, high, 60)
        for colour, (kind, values) in zip(COLOURS, kinds.items(), strict=False):
            heights, _ = np.histogram(values, edges, density=True)
            axis.stairs(heights / heights.max(), edges, color=colour, linestyle=looks[kind],
                        linewidth=1.5, label=kind)  # fmt: skip
            axis.axvline(np.median(values), color=colour, linewidth=0.7)
        if high <= 1.05:
            for label, value in bounds.items():
                axis.axvline(value, color="#000000", linewidth=1)
                axis.annotate(label, (value, 0.9), fontsize=7, ha="right", rotation=90, va="top")
        axis.set_title(teacher, fontsize=9, loc="left")
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 1.55), ncols=3)
    axes[-1, 0].set_xlabel("teacher's score (cosine; BM25: sum)", fontsize=9)
    figure.supylabel("density, scaled to its peak; thin line: median", fontsize=9)
    return figure


def survival(table: pd.DataFrame) -> Figure:
    """Share of the best candidates below the ceiling, a panel a family, a line a teacher.

    Args:
        table: columns teacher, family, parameter, survive.
    """
    families = [family for family in AXES if family in set(table["family"])]
    figure, axes = plt.subplots(
        1, len(families), sharey=True, squeeze=False, layout="constrained",
        figsize=(max(COLUMN_WIDTH, 2.3 * len(families)), 3.2),
    )  # fmt: skip
    for axis, family in zip(axes[0], families, strict=True):
        for place, (name, rows) in enumerate(
            table[table["family"] == family].groupby("teacher", sort=False)
        ):
            x = rows["parameter"] * (100 if family == "perc-pos" else 1)
            axis.plot(x, 100 * rows["survive"], color=COLOURS[place % 7], label=name,
                      marker=MARKERS[place % 7], markersize=3.5, linewidth=1.1)  # fmt: skip
        axis.set_xlabel(AXES[family], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(linewidth=0.3)
    axes[0, 0].set_ylabel("candidates that pass (%)", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def lengths(texts: dict[str, Sequence[str]]) -> Figure:
    """Words a passage, a cumulative curve a set."""
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.4), layout="constrained")
    for place, (name, passages) in enumerate(texts.items()):
        words = np.sort([len(text.split()) for text in passages])
        share = 100 * np.arange(1, len(words) + 1) / len(words)
        axis.plot(words, share, color=COLOURS[place % 7], linestyle=["-", "--"][place // 7 % 2],
                  marker=MARKERS[place % 7], markevery=0.1, markersize=4, label=name)  # fmt: skip
    axis.set(xlabel="words a passage", ylabel="passages of at most that many (%)", xlim=(0, 500))
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8)
    return figure


def orders(table: pd.DataFrame) -> Figure:
    """Paired differences of two methods in each setting, a panel a difference.

    Args:
        table: of ``findings.orders``, in points of NDCG@10.
    """
    names = list(dict.fromkeys(table["difference"]))
    places = {
        key: number
        for number, key in enumerate(
            dict.fromkeys(zip(table["student"], table["setting"], strict=True))
        )
    }
    figure, axes = plt.subplots(
        1, len(names), sharey=True, sharex=False, squeeze=False, layout="constrained",
        figsize=(max(COLUMN_WIDTH, 3.4 + 1.7 * len(names)), 1.1 + 0.3 * len(places)),
    )  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        axis.axvline(0, color="#777777", linewidth=1)
        for row in table[table["difference"] == name].itertuples():
            sure = row.low > 0 or row.high < 0
            colour = "#0072B2" if row.low > 0 else "#D55E00" if row.high < 0 else "#777777"
            axis.errorbar(
                row.value, places[row.student, row.setting],
                xerr=[[row.value - row.low], [row.high - row.value]], color=colour,
                marker="o" if sure else "x", markersize=5, capsize=2, linewidth=1.2,
            )  # fmt: skip
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", linewidth=0.3)
    names = [fill(f"{student}: {group}", 34) for student, group in places]
    axes[0, 0].set_yticks(list(places.values()), names, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("points of NDCG@10, 95 % interval; cross: undecided", fontsize=9)
    return figure
