"""Figures of the notebooks: labelled axes, units, intervals, colours for the colour-blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from nvret import methods

# Okabe and Ito's palette; a method keeps its colour and marker in every figure
STYLE = {
    "Base": ("#999999", "x"),
    "No mined": ("#009E73", "*"),
    "Random": ("#000000", "D"),
    "Naive": ("#D55E00", "o"),
    "shifted": ("#E69F00", "v"),
    "Abs": ("#CC79A7", "s"),
    "MarginPos": ("#56B4E9", "^"),
    "PercPos": ("#0072B2", "P"),
}
COLUMN_WIDTH = 6.4  # inches


def style(label: str) -> tuple[str, str]:
    """Colour and marker of a method's label."""
    return next(value for key, value in STYLE.items() if key in label)


def differences(table: pd.DataFrame, student: str) -> Figure:
    """Forest plot: each arm less the reference, a panel per test set, 95 % intervals.

    Of more than three test sets only the first and the mean of all are drawn.

    Args:
        table: of ``report.differences``.
    """
    rows = table[table["student"] == student]
    sets = list(dict.fromkeys(rows["dataset"]))
    sets = sets[:1] if len(sets) == 2 else sets  # the mean of one test set is that test set
    sets = [sets[0], sets[-1]] if len(sets) > 4 else sets
    labels = list(dict.fromkeys(rows["arm"]))[::-1]
    short = [fill(label.removeprefix(f"{student}: "), 44, break_on_hyphens=False)
             for label in labels]  # fmt: skip
    lines = sum(1 + label.count("\n") for label in short)
    figure, axes = plt.subplots(
        1,
        len(sets),
        sharey=True,
        sharex=True,
        layout="constrained",
        figsize=(max(COLUMN_WIDTH, 3.2 + 1.6 * len(sets)), 1.1 + 0.2 * lines),
    )
    for axis, dataset in zip(np.atleast_1d(axes), sets, strict=True):
        axis.axvline(0, color="#D55E00", linewidth=1)
        for place, label in enumerate(labels):
            found = rows[(rows["dataset"] == dataset) & (rows["arm"] == label)]
            if found.empty:
                continue
            value, low, high = 100 * found.iloc[0][["difference", "low", "high"]].to_numpy(float)
            colour, marker = style(label)
            axis.errorbar(
                value,
                place,
                xerr=[[value - low], [high - value]],
                color=colour,
                marker=marker,
                markersize=5,
                capsize=2,
                linewidth=1.2,
            )
        axis.set_title(dataset, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", linewidth=0.3)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(labels)), short)
    first.set_ylim(-0.6, len(labels) - 0.4)
    reference = rows["reference"].iloc[0]
    figure.supxlabel(f"NDCG@10, points above {reference} (95 % interval)", fontsize=9)
    figure.suptitle(f"Student: {student}", fontsize=10)
    return figure


def losses(logs: pd.DataFrame, student: str, num_candidates: int) -> Figure:
    """Training loss over steps: mean over seeds, band from the lowest to the highest seed.

    The last step, whose batch may hold a single pair, is left out.
    """
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.4), layout="constrained")
    rows = logs[logs["arm"].str.startswith(f"{student}: ")]
    for label, group in rows.groupby("arm", sort=False):
        curves = group.pivot(index="step", columns="seed", values="loss").iloc[:-1]
        window = max(1, len(curves) // 12)
        curves = curves.rolling(window, min_periods=1).mean()
        colour, marker = style(label)
        axis.fill_between(
            curves.index, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.15
        )
        axis.plot(
            curves.index,
            curves.mean(axis=1),
            color=colour,
            marker=marker,
            label=label.removeprefix(f"{student}: "),
            markevery=max(1, len(curves) // 8),
            markersize=4,
            linewidth=1.3,
        )
    axis.axhline(np.log(num_candidates), color="#777777", linestyle=":", linewidth=1)
    axis.annotate(
        f"ln {num_candidates}: a blind guess",
        (1, np.log(num_candidates)),
        fontsize=8,
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="#555555",
    )
    axis.set(xlabel="training step", ylabel="InfoNCE loss (nats)")
    axis.set_title(
        f"Student: {student} (running mean over {window} step{'s' * (window > 1)})", fontsize=10
    )
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, ncols=2)
    return figure


def score_ratios(tables: Mapping[str, pa.Table]) -> Figure:
    """Where the mined negatives lie: their score as a share of their positive's."""
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.4), layout="constrained")
    grid = np.linspace(0, 1.6, 400)
    for label, table in tables.items():
        scores = table["score"].to_numpy()
        positives = table["positive_score"].to_numpy()
        ratio = np.sort(scores[positives > 0] / positives[positives > 0])
        if len(ratio) == 0:
            continue
        colour, marker = style(label)
        share = 100 * np.searchsorted(ratio, grid, side="right") / len(ratio)
        axis.plot(grid, share, color=colour, marker=marker, markevery=40, markersize=4, label=label)
    axis.axvline(1, color="#777777", linestyle=":", linewidth=1)
    axis.annotate("the positive", (1, 2), fontsize=8, color="#555555", rotation=90, ha="right")
    axis.set(
        xlabel="teacher's score of the negative ÷ score of its positive",
        ylabel="negatives at or below (%)",
        xlim=(0, 1.6),
        ylim=(0, 101),
    )
    axis.legend(fontsize=8)
    return figure


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
    figure, axis = plt.subplots(
        figsize=(1.45 * COLUMN_WIDTH, 1.3 + 0.33 * len(scores)), layout="constrained"
    )
    places = np.arange(len(scores))
    for truth in dict.fromkeys(truths):
        mine = np.array([t == truth for t in truths])
        answers = truth.startswith("answers")
        axis.barh(
            places[mine], np.asarray(scores)[mine], height=0.6, label=truth, edgecolor="white",
            color="#F0E442" if answers else "#BBBBBB" if truth == "hard" else "#E4E4E4",
            hatch="///" if answers else None,
        )  # fmt: skip
    axis.axvline(pos_score, color="#009E73", linewidth=2.5, label="the positive's score")
    for rule in rules:
        colour, _ = style(str(rule))
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
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.8), layout="constrained")
    colours = ["#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#CC79A7", "#000000"]
    for place, (label, (sizes, seconds)) in enumerate(lines.items()):
        colour = colours[place % len(colours)]
        axis.plot(sizes, seconds, color=colour, linewidth=1.3, label=label,
                  linestyle=["-", "--", ":"][place // 3 % 3])  # fmt: skip
        if label in points:
            star = label == held_out
            axis.plot(*points[label], "*" if star else "osDv^P"[place % 6], color=colour,
                      markersize=14 if star else 5)  # fmt: skip
    if mark is not None:
        axis.axvline(mark[0], color="#777777", linewidth=1, linestyle=":")
        axis.annotate(
            mark[1], (mark[0], 0.03), xycoords=("data", "axes fraction"), fontsize=8,
            color="#555555", ha="right", xytext=(-4, 0), textcoords="offset points",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="time (seconds)")
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8)
    return figure
