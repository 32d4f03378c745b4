"""Figures of the audit: hard but true, false negatives by rank, what judges catch."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvret.study.curves import COLOURS
from nvret.study.figures import COLUMN_WIDTH, STYLE, style

PALETTE = ["#000000", *COLOURS[:5]]
MARKERS = "oP^sDv"


def frontier(table: pd.DataFrame) -> Figure:
    """Hard but true: the rate of known false negatives against the hardness of the others.

    A panel for each data set; a line for each family of methods through its parameters, 95 %
    intervals. To the right and below is better.

    Args:
        table: columns dataset, method, rate, low, high, hardness; shares.
    """
    figure, axes = _panels(table["dataset"], height=3.6)
    for axis, (name, rows) in zip(axes, table.groupby("dataset", sort=False), strict=True):
        families = rows["method"].map(lambda method: next(k for k in STYLE if k in method))
        for family, group in rows.groupby(families, sort=False):
            line = group.dropna(subset=["rate", "hardness"]).sort_values("hardness")
            colour, marker = style(family)
            rate, low, high = (100 * line[column] for column in ("rate", "low", "high"))
            axis.errorbar(
                100 * line["hardness"], rate, yerr=[rate - low, high - rate], color=colour,
                marker=marker, markersize=5, capsize=2, linewidth=1.1, label=family, clip_on=False,
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
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.4), layout="constrained")
    for place, (name, rows) in enumerate(table.groupby("dataset", sort=False)):
        colour = PALETTE[1 + place % 5]
        axis.fill_between(
            rows["rank"], 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.2
        )
        axis.plot(
            rows["rank"], 100 * rows["rate"], color=colour, marker=MARKERS[place % 6],
            markersize=4, linewidth=1.2, label=name,
        )  # fmt: skip
    axis.set(xlabel="rank of the candidate", ylabel="known positives (%)")
    _root_scale(axis, 100 * table["high"].max())
    axis.legend(fontsize=8)
    return figure


def judges(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """What a judge catches at each threshold, against what it throws out with it.

    Args:
        curves: data set -> judge -> columns removed, recall, shares (`judge_quality.curve`).
    """
    figure, axes = _panels(list(curves), height=3.4)
    for axis, (name, lines) in zip(axes, curves.items(), strict=True):
        for place, (judge, line) in enumerate(lines.items()):
            axis.step(
                100 * np.r_[0, line["removed"]], 100 * np.r_[0, line["recall"]], where="post",
                color=PALETTE[place % 6], linestyle=["-", "--", ":"][place % 3], linewidth=1.5,
                label=judge,
            )  # fmt: skip
        axis.plot([0, 100], [0, 100], color="#999999", linewidth=0.8)
        axis.set_title(name, fontsize=9)
    figure.supxlabel("other negatives thrown out (%)", fontsize=9)
    figure.supylabel("known positives caught (%)", fontsize=9)
    return _with_legend(figure, axes[0], 4)


def _with_legend(figure: Figure, axis: plt.Axes, columns: int) -> Figure:
    """The labels of one panel, above all of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=columns)
    return figure


def _panels(names: pd.Series | list[str], height: float) -> tuple[Figure, np.ndarray]:
    count = len(dict.fromkeys(names))
    figure, axes = plt.subplots(
        1, count, squeeze=False, sharey=True, layout="constrained",
        figsize=(max(COLUMN_WIDTH, 3.0 * count), height),
    )  # fmt: skip
    for axis in axes[0]:
        axis.grid(linewidth=0.3)
        axis.tick_params(labelsize=8)
    return figure, axes[0]


def _root_scale(axis: Axes, highest: float) -> None:
    """A square-root axis from 0: small rates are told apart, and 0 has a place."""
    axis.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axis.set_ylim(0, 1.05 * highest)
    steps = [0, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 100]
    steps = [step for step in steps if step <= max(highest, 1)]
    axis.set_yticks(steps, [f"{step:g}" for step in steps])
    axis.grid(linewidth=0.3)
