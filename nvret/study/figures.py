"""Figures of trained students: forest plots, sweeps, teachers, losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from nvret.analysis import looks
from nvret.analysis.looks import AXES, BLACK, BLUE, COLUMN_WIDTH, GREY, VERMILION

VERDICTS = {  # the marker says the same as the colour
    "reproduced": {"color": BLUE, "marker": "o"},
    "not reproduced": {"color": VERMILION, "marker": "X"},
    "undecided": {"color": GREY, "marker": "s"},
}
LINEAR = 1.0  # points up to which the ledger's axis is linear; beyond, equal steps: equal ratios


def panel(height: float, width: float = COLUMN_WIDTH, *, grid: bool = False) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    if grid:
        axis.grid(linewidth=0.3)
    return figure, axis


def panels(
    columns: int, height: float, width: float, *, rows: int = 1, grid: str | None = "both",
    **options: Any,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A figure of several panels, at least as wide as a column.

    Args:
        grid: axis of the lines behind the data: "x", "both", or None.
        options: of ``plt.subplots``.
    Returns:
        the figure, and its axes: (columns,), or (rows, columns) where there are several rows.
    """
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, layout="constrained",
        figsize=(max(COLUMN_WIDTH, width), height), **options,
    )  # fmt: skip
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        if grid:
            axis.grid(axis=grid, linewidth=0.3)
    return figure, axes if rows > 1 else axes[0]


def _forest(
    axis: Axes, rows: pd.DataFrame, places: Iterable[float], styles: Iterable[Mapping[str, str]],
    *, size: float = 5, caps: float = 2, width: float = 1.2,
) -> None:  # fmt: skip
    """An estimate and its interval for each row.

    Args:
        rows: columns value, low, high, in the unit of the axis.
        places: of the rows on the y axis.
        styles: colour and marker of each row.
    """
    for row, place, style in zip(rows.itertuples(), places, styles, strict=True):
        axis.errorbar(
            row.value, place, xerr=[[row.value - row.low], [row.high - row.value]],
            markersize=size, capsize=caps, linewidth=width, **style,
        )  # fmt: skip


def differences(table: pd.DataFrame, student: str) -> Figure:
    """Forest plot: each arm less the reference, a panel per test set, 95 % intervals.

    Of more than three test sets only the first and the mean of all are drawn.

    Args:
        table: of ``tables.differences``.
    """
    rows = table[table["student"] == student]
    sets = list(dict.fromkeys(rows["dataset"]))
    sets = sets[:1] if len(sets) == 2 else sets  # the mean of one test set is that test set
    sets = [sets[0], sets[-1]] if len(sets) > 4 else sets
    labels = list(dict.fromkeys(rows["arm"]))[::-1]
    names = [fill(label.removeprefix(f"{student}: "), 44, break_on_hyphens=False)
             for label in labels]  # fmt: skip
    lines = sum(1 + name.count("\n") for name in names)
    figure, axes = panels(
        len(sets), 1.1 + 0.2 * lines, 3.2 + 1.6 * len(sets), grid="x", sharey=True, sharex=True
    )
    for axis, dataset in zip(axes, sets, strict=True):
        axis.axvline(0, color=VERMILION, linewidth=1)
        shown = rows[rows["dataset"] == dataset].drop_duplicates("arm")
        estimates = 100 * shown[["difference", "low", "high"]].rename(
            columns={"difference": "value"}
        )
        places = [labels.index(arm) for arm in shown["arm"]]
        _forest(axis, estimates, places, map(looks.of_method, shown["arm"]))
        axis.set_title(dataset, fontsize=9)
    axes[0].set_yticks(range(len(labels)), names)
    axes[0].set_ylim(-0.6, len(labels) - 0.4)
    reference = rows["reference"].iloc[0]
    figure.supxlabel(f"NDCG@10, points above {reference} (95 % interval)", fontsize=9)
    figure.suptitle(f"Student: {student}", fontsize=10)
    return figure


def orders(table: pd.DataFrame) -> Figure:
    """Paired differences of two methods in each setting, a panel a difference.

    Args:
        table: of ``tables.orders``, in points of NDCG@10.
    """
    names = list(dict.fromkeys(table["difference"]))
    table = table.assign(name=table["student"] + ": " + table["setting"])
    settings = list(dict.fromkeys(table["name"]))
    figure, axes = panels(
        len(names), 1.1 + 0.3 * len(settings), 3.4 + 1.7 * len(names), grid="x", sharey=True
    )

    def style(row: Any) -> dict[str, str]:
        if row.low > 0 or row.high < 0:
            return {"color": BLUE if row.low > 0 else VERMILION, "marker": "o"}
        return {"color": GREY, "marker": "x"}

    for axis, name in zip(axes, names, strict=True):
        axis.axvline(0, color=GREY, linewidth=1)
        rows = table[table["difference"] == name]
        _forest(axis, rows, map(settings.index, rows["name"]), map(style, rows.itertuples()))
        axis.set_title(name, fontsize=9)
    axes[0].set_yticks(range(len(settings)), [fill(name, 34) for name in settings], fontsize=8)
    axes[0].invert_yaxis()
    figure.supxlabel("points of NDCG@10, 95 % interval; cross: undecided", fontsize=9)
    return figure


def ledger(table: pd.DataFrame) -> Figure:
    """Forest plot of the claims, grouped by question; the paper's difference beside each.

    Args:
        table: of ``ledger.build``; drawn are the rows with an interval in points of NDCG@10.
    """
    rows = table[(table["unit"] == "points") & table["low"].notna()]
    places, labels, heads = [], [], {}
    for section, group in rows.groupby("section", sort=False):
        heads[section] = len(places) + len(heads)
        places += range(heads[section] + 1, heads[section] + 1 + len(group))
        labels += [f"{row.id} · {row.student}" for row in group.itertuples()]
    end = len(places) + len(heads)
    figure, axis = panel(1.5 + 0.165 * max(end, 4))
    axis.axvline(0, color=BLACK, linewidth=0.8)
    estimates = 100 * rows[["difference", "low", "high"]].rename(columns={"difference": "value"})
    _forest(axis, estimates, places, rows["verdict"].map(VERDICTS), size=4.5, caps=0, width=1.4)
    axis.plot(100 * rows["paper"].astype(float), places, "|", color=BLACK, markersize=7, zorder=1)
    for place in heads.values():
        axis.axhspan(place - 0.5, place + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
    axis.set_yticks([*places, *heads.values()], [*labels, *heads])
    for tick in axis.get_yticklabels()[len(places) :]:
        tick.set_fontweight("bold")
    axis.tick_params(axis="y", labelsize=6.5, length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylim(max(end, 1) - 0.3, -0.7)
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=1)
    left, right = axis.get_xlim()
    ticks = [-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20]
    axis.set_xticks([x for x in ticks if left <= x <= right])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel(f"points of NDCG@10, 95 % interval; linear up to {LINEAR:g} point", fontsize=9)
    handles = [Line2D([], [], markersize=4.5, label=name, **VERDICTS[name]) for name in VERDICTS]
    handles.append(Line2D([], [], color=BLACK, marker="|", linestyle="", label="paper"))
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="outside upper center", frameon=False)
    return figure


def losses(logs: pd.DataFrame, student: str, num_candidates: int) -> Figure:
    """Training loss over steps: mean over seeds, band from the lowest to the highest seed.

    The last step, whose batch may hold a single pair, is left out.

    Args:
        logs: of ``Results.logs``.
        num_candidates: a pair's passages in the loss.
    """
    figure, axis = panel(3.4)
    rows = logs[logs["arm"].str.startswith(f"{student}: ")]
    for label, group in rows.groupby("arm", sort=False):
        curves = group.pivot(index="step", columns="seed", values="loss").iloc[:-1]
        window = max(1, len(curves) // 12)
        curves = curves.rolling(window, min_periods=1).mean()
        style = looks.of_method(label)
        axis.fill_between(
            curves.index, curves.min(axis=1), curves.max(axis=1), color=style["color"], alpha=0.15
        )
        axis.plot(
            curves.index, curves.mean(axis=1), label=label.removeprefix(f"{student}: "),
            markevery=max(1, len(curves) // 8), markersize=4, linewidth=1.3, **style,
        )  # fmt: skip
    blind = np.log(num_candidates)
    axis.axhline(blind, color=GREY, linestyle=":", linewidth=1)
    axis.annotate(
        f"ln {num_candidates}: a blind guess", (1, blind), xycoords=("axes fraction", "data"),
        fontsize=8, ha="right", va="bottom", color="#555555",
    )  # fmt: skip
    steps = f"{window} step{'s' * (window > 1)}"
    axis.set(xlabel="training step", ylabel="InfoNCE loss (nats)")
    axis.set_title(f"Student: {student} (running mean over {steps})", fontsize=10)
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, ncols=2)
    return figure


def sweeps(table: pd.DataFrame, reference: str, best: Sequence[str]) -> Figure:
    """NDCG@10, survival and false negatives against each method's parameter, a column a method.

    Args:
        table: of ``tables.sweep``.
        reference: what the differences are to.
        best: labels of the arms that were chosen on the development split; drawn as stars.
    """
    families = [family for family in AXES if family in set(table["family"])]
    figure, axes = panels(
        len(families), 5.6, 2.3 * len(families), rows=3, sharey="row", sharex="col",
        height_ratios=[2, 1, 1],
    )  # fmt: skip
    for (top, middle, bottom), family in zip(axes.T, families, strict=True):
        rows = table[table["family"] == family].sort_values("parameter")
        x = rows["parameter"] * (100 if family == "perc-pos" else 1)
        style = looks.of_method(str(rows["method"].iloc[0]))
        top.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.2, linewidth=0)
        top.plot(x, rows["difference"], markersize=4, linewidth=1.3, **style)
        chosen = rows["arm"].isin(best)
        top.plot(x[chosen], rows["difference"][chosen], "*", color=BLACK, markersize=11)
        top.axhline(0, color=VERMILION, linestyle=":", linewidth=1.2)
        for axis, name in ((middle, "filled"), (bottom, "false")):
            axis.plot(x, 100 * rows[name], markersize=3, linewidth=1, **style)
        bottom.set_xlabel(AXES[family], fontsize=9)
        if family == "shifted":
            top.set_xscale("symlog", linthresh=1)
            bottom.xaxis.set_major_formatter("{x:g}")
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
        table: of ``tables.differences``, rows of one student and test set.
        reference: its name.
    """
    figure, axis = panel(3.6, grid=True)
    for place, (name, rows) in enumerate(table.groupby(by, sort=False)):
        rows = rows.sort_values(x)
        value, low, high = (100 * rows[key] for key in ("difference", "low", "high"))
        style = looks.of_line(place)
        axis.fill_between(rows[x], low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.plot(rows[x], value, markersize=5, label=name, **style)
    axis.axhline(0, color=GREY, linestyle=":", label=reference)
    axis.set(xlabel=xlabel, ylabel="NDCG@10, points, 95 % interval")
    axis.legend(fontsize=8)
    return figure


def teachers(table: pd.DataFrame, reference: str) -> Figure:
    """What a student gains from its teacher's negatives against the teacher's own NDCG@10.

    Args:
        table: of ``tables.teachers_and_students``.
        reference: what the student's points are counted from.
    """
    figure, axis = panel(4.2, grid=True)
    axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
    rules = list(dict.fromkeys(table["rule"]))
    for place, rule in enumerate(rules):
        rows = table[table["rule"] == rule]
        middle, value = rows["teacher_mean"].to_numpy(), 100 * rows["difference"].to_numpy()
        axis.errorbar(
            middle + 0.002 * (place - (len(rules) - 1) / 2), value,  # side by side
            xerr=[middle - rows["teacher_low"], rows["teacher_high"] - middle],
            yerr=[value - 100 * rows["low"], 100 * rows["high"] - value],
            linestyle="", markersize=6, capsize=2, linewidth=1, label=rule, **looks.of_line(place),
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
