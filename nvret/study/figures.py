"""Figures of trained students: forest plots, sweeps, teachers, losses."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nvret.analysis import looks, statistics
from nvret.analysis.looks import AXES, BLACK, BLUE, COLUMN_WIDTH, GREY, VERMILION
from nvret.study.scores import COLLAPSED
from nvret.study.tables import OWN_SETTING

VERDICTS = {  # the marker says the same as the colour
    "confirmed": {"color": BLUE, "marker": "o"},
    "same sign, smaller": {"color": looks.SKY, "marker": "^"},
    "no effect": {"color": looks.ORANGE, "marker": "D"},
    "reversed": {"color": VERMILION, "marker": "X"},
    "undecided": {"color": GREY, "marker": "s", "markerfacecolor": "white"},
    "not a test": {"color": looks.PURPLE, "marker": "v", "markerfacecolor": "white"},
}
LINEAR = 1.0  # points up to which the ledger's axis is linear; beyond, equal steps: equal ratios
TICKS = [-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20]


def panels(
    columns: int, height: float, width: float = 0, *, rows: int = 1, grid: str | None = "both",
    **options: Any,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A figure in inches, at least as wide as a column, and its panels' axes.

    The axes are (columns,), or (rows, columns) where there are several rows. ``grid`` is the axis
    of the lines behind the data: "x", "both", or None; ``options`` are those of ``plt.subplots``.
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


def legend(figure: Figure, axis: Axes, columns: int) -> Figure:
    """The labels of one panel, above all of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=columns)
    return figure


def band(axis: Axes, x: pd.Series | pd.Index, rows: pd.DataFrame, **style: Any) -> None:
    """A line through the rows' values, over the band from low to high."""
    axis.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.2, linewidth=0)
    axis.plot(x, rows["value"], markersize=4, linewidth=1.3, **style)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """The table's differences and their intervals as value, low and high in points."""
    estimates = 100 * table[["difference", "low", "high"]].astype(float)
    return table.assign(value=estimates["difference"], low=estimates["low"], high=estimates["high"])


def _forest(
    parts: Mapping[str, pd.DataFrame], labels: Sequence[str], xlabel: str, *, sharex: bool = False
) -> Figure:
    """An estimate and its interval for each row, a panel a part.

    Args:
        parts: by title; columns label, style (keywords of matplotlib), value, low, high.
        labels: from top to bottom; one without a row has an empty line.
    """
    names = [
        fill(re.sub(r"(?<=\w)\+(?=\w)", " + ", label), 44, break_on_hyphens=False)
        for label in labels
    ]
    breaks = [name.count("\n") for name in names]
    lines = max(len(names) + sum(breaks), 0.75 * len(names) * (1 + max(breaks, default=0)))
    figure, axes = panels(
        len(parts), 1.1 + 0.2 * lines, 3.2 + 1.6 * len(parts), grid="x", sharey=True, sharex=sharex
    )
    for axis, (title, rows) in zip(axes, parts.items(), strict=True):
        axis.axvline(0, color=BLACK, linewidth=0.8)
        for row in rows.itertuples():
            axis.errorbar(
                row.value, labels.index(row.label), markersize=5, capsize=2, linewidth=1.2,
                xerr=[[row.value - row.low], [row.high - row.value]], **row.style,
            )  # fmt: skip
        axis.set_title(title, fontsize=9)
    axes[0].set_yticks(range(len(labels)), names)
    axes[0].set_ylim(max(len(labels), 1) - 0.4, -0.6)
    figure.supxlabel(xlabel, fontsize=9)
    return figure


def differences(table: pd.DataFrame, student: str) -> Figure:
    """Forest plot of ``tables.differences``, on the first test set and on average.

    A setting with a reference of its own is a group, under the reference's name.
    """
    rows = _points(table[table["student"] == student])
    rows = rows.assign(
        label=rows["arm"].str.removeprefix(f"{student}: "), style=rows["arm"].map(looks.of_method)
    )
    sets = list(dict.fromkeys(rows["dataset"]))
    shown = sets[:1] if len(sets) == 2 else [sets[0], sets[-1]]  # the mean of one set is that set
    parts = {name: rows[rows["dataset"] == name] for name in shown}
    groups = rows.groupby("reference", sort=False)["label"].unique()
    groups = groups.loc[sorted(groups.index, key=lambda name: name.count(","))]
    heads = [f"Above {name}" for name in groups.index] if len(groups) > 1 else []
    each = itertools.zip_longest(heads, groups)
    labels = [label for head, own in each for label in [*filter(None, [head]), *own]]
    above = "the reference that heads each group" if heads else groups.index[0]
    xlabel = f"NDCG@10, points above {above} (95 % interval)"
    figure = _forest(parts, labels, xlabel, sharex=True)
    _mark_heads(figure, [labels.index(head) for head in heads])
    figure.suptitle(f"Student: {student}", fontsize=10)
    return figure


def _mark_heads(figure: Figure, places: Sequence[int]) -> None:
    """Rows of a forest plot that only name what follows."""
    for axis in figure.axes:
        for place in places:
            axis.axhspan(place - 0.5, place + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
    for place in places:
        figure.axes[0].get_yticklabels()[place].set_fontweight("bold")


def orders(table: pd.DataFrame) -> Figure:
    """Forest plot of ``tables.orders``: a row a setting, a panel a difference.

    Filled: the interval lies on one side of 0.
    """
    table = table.assign(
        label=table["student"] + ": " + table["setting"],
        style=[VERDICTS[statistics.verdict_on_bound(row, 0.0)] for row in table.itertuples()],
    )
    parts = dict(list(table.groupby("difference", sort=False)))
    labels = list(dict.fromkeys(table["label"]))
    return _forest(parts, labels, "points of NDCG@10, 95 % interval; square: both signs")


def by_corpus(table: pd.DataFrame) -> Figure:
    """``tables.by_corpus`` in the students' own settings, if there are any: a panel a difference.

    From the smallest corpus to the largest; open markers: near-duplicates as one passage.
    """
    own = table[table["setting"] == OWN_SETTING]
    table = own if len(own) else table
    sizes = table.groupby("corpus")["passages"]
    corpora = sizes.mean().sort_values().index
    names = [
        f"{name}\n{' / '.join(f'{n:,}' for n in sorted(set(sizes.get_group(name))))}"
        for name in corpora
    ]
    varied = [c for c in ("student", "setting", "test") if table[c].nunique() > 1] or ["student"]
    lines = dict(list(table.groupby([*varied, "metric"], sort=False)))
    colours = list(dict.fromkeys(key[:-1] for key in lines))
    pairs = list(dict.fromkeys(table["difference"]))
    width = max(2.4, 0.9 * len(corpora)) * len(pairs)
    figure, axes = panels(len(pairs), 3.6, width, grid="y", sharey=True)
    for axis, pair in zip(axes, pairs, strict=True):
        axis.axhline(0, color=BLACK, linewidth=0.8)
        for place, (key, rows) in enumerate(lines.items()):
            rows = rows[rows["difference"] == pair]
            collapsed = key[-1] == COLLAPSED
            x = corpora.get_indexer(rows["corpus"]) + 0.6 * ((place + 0.5) / len(lines) - 0.5)
            label = ", ".join([*key[:-1], "twins as one" if collapsed else "plain"])
            axis.errorbar(
                x, rows["value"], [rows["value"] - rows["low"], rows["high"] - rows["value"]],
                linestyle="", markersize=5, capsize=2, linewidth=1.2, label=label,
                markerfacecolor="white" if collapsed else None,
                **looks.of_line(colours.index(key[:-1])),
            )  # fmt: skip
        axis.set_title(pair, fontsize=9)
        axis.set_xticks(range(len(corpora)), names)
        axis.set_xlim(-0.5, len(corpora) - 0.5)
    axes[0].set_ylabel("NDCG@10, points,\n95 % interval, paired", fontsize=9)
    figure.supxlabel("corpus, and its number of passages", fontsize=9)
    return legend(figure, axes[0], 2)


def ledger(table: pd.DataFrame) -> Figure:
    """Forest plot of ``ledger.build``, grouped by question; the paper's difference beside each.

    Drawn are the rows with an interval in points of NDCG@10; a star marks the primary ones.
    """
    rows = _points(table[(table["unit"] == "points") & table["low"].notna()])
    rows = rows.assign(
        label=rows["primary"].map({True: "★ ", False: ""}) + rows["id"] + " · " + rows["student"],
        style=rows["verdict"].map(VERDICTS),
    )
    heads = list(dict.fromkeys(rows["section"]))
    labels = [name for head in heads for name in (head, *rows["label"][rows["section"] == head])]
    xlabel = f"in-domain points of NDCG@10, 95 % interval; linear up to {LINEAR:g} point"
    figure = _forest({"": rows}, labels, xlabel)
    axis = figure.axes[0]
    places = [labels.index(label) for label in rows["label"]]
    axis.plot(100 * rows["paper"].astype(float), places, "|", color=BLACK, markersize=7, zorder=1)
    _mark_heads(figure, [labels.index(head) for head in heads])
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=1)
    left, right = axis.get_xlim()
    axis.set_xticks([x for x in TICKS if left <= x <= right])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    handles = [Line2D([], [], markersize=5, label=name, **VERDICTS[name]) for name in VERDICTS]
    handles.append(Line2D([], [], color=BLACK, marker="|", linestyle="", label="paper"))
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="outside upper center", frameon=False)
    return figure


def learning_rates(table: pd.DataFrame) -> Figure:
    """``tables.learning_rates``: a panel a student; the star is the choice."""
    students = list(table["student"].unique())
    figure, axes = panels(len(students), 3.6, 3.2 * len(students))
    for axis, student in zip(axes, students, strict=True):
        own = table[table["student"] == student]
        for number, (temperature, rows) in enumerate(own.groupby("temperature")):
            rows, style = rows.sort_values("learning_rate"), looks.of_line(number)
            axis.errorbar(
                rows["learning_rate"], rows["value"], capsize=2, linewidth=1.2, markersize=5,
                yerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
                label=f"temperature {temperature:g}", **style,
            )  # fmt: skip
        best = own[own["chosen"]]
        axis.plot(best["learning_rate"], best["value"], "*", color=BLACK, markersize=12, zorder=3)
        axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
        axis.set_xscale("log")
        axis.set_xticks(
            own["learning_rate"].unique(), [f"{x:g}" for x in own["learning_rate"].unique()]
        )
        axis.set_xticks([], minor=True)
        axis.set(title=student, xlabel="learning rate")
        axis.legend(fontsize=8)
    axes[0].set_ylabel(
        "NDCG@10 on the development split,\npoints over the base model (95 % interval)"
    )
    return figure


def losses(logs: pd.DataFrame, student: str, num_candidates: int) -> Figure:
    """Training loss (``Results.logs``): mean over seeds, band from the lowest to the highest.

    The last step, whose batch may hold a single pair, is left out. Who guesses blindly among the
    ``num_candidates`` passages of a pair has their logarithm as loss.
    """
    figure, (axis,) = panels(1, 3.8, grid=None)
    own = logs[logs["arm"].str.startswith(f"{student}: ")]
    for label, group in own.groupby("arm", sort=False):
        curves = group.pivot(index="step", columns="seed", values="loss").iloc[:-1]
        window = max(1, len(curves) // 12)
        curves = curves.rolling(window, min_periods=1).mean()
        rows = curves.agg(["mean", "min", "max"], axis=1)
        rows.columns = ["value", "low", "high"]
        band(axis, rows.index, rows, label=label.removeprefix(f"{student}: "),
             markevery=max(1, len(curves) // 8), **looks.of_method(label))  # fmt: skip
    blind = f"ln {num_candidates}: a blind guess"
    axis.axhline(np.log(num_candidates), color=GREY, linestyle=":", linewidth=1, label=blind)
    steps = f"{window} step{'s' * (window > 1)}"
    axis.set(xlabel="training step", ylabel="InfoNCE loss (nats)")
    axis.set_title(f"Student: {student} (running mean over {steps})", fontsize=10)
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return legend(figure, axis, 4)


def sweeps(table: pd.DataFrame, reference: str, best: Sequence[str]) -> Figure:
    """``tables.sweep`` against each method's parameter, a column a method.

    Args:
        best: labels of the arms that were chosen on the development split; drawn as stars.
    """
    families = [family for family in AXES if family in set(table["family"])]
    figure, axes = panels(
        len(families), 5.6, 2.3 * len(families), rows=3, sharey="row", sharex="col",
        height_ratios=[2, 1, 1],
    )  # fmt: skip
    for (top, middle, bottom), family in zip(axes.T, families, strict=True):
        rows = table[table["family"] == family].sort_values("parameter")
        rows = rows.rename(columns={"difference": "value"})
        x = rows["parameter"] * (100 if family == "perc-pos" else 1)
        style = looks.of_method(str(rows["method"].iloc[0]))
        band(top, x, rows, **style)
        chosen = rows["arm"].isin(best)
        top.plot(x[chosen], rows["value"][chosen], "*", color=BLACK, markersize=11)
        top.axhline(0, color=VERMILION, linestyle=":", linewidth=1.2)
        middle.plot(x, 100 * rows["filled"], markersize=3, linewidth=1, **style)
        bottom.plot(x, 100 * rows["false"], markersize=3, linewidth=1, **style)
        bottom.set_xlabel(AXES[family], fontsize=9)
        if family == "shifted":
            top.set_xscale("symlog", linthresh=1)
            bottom.xaxis.set_major_formatter("{x:g}")
    labels = ("NDCG@10, points,\n95 % interval", "negatives\nfound (%)", "known\npositives (%)")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    for axis in axes[1:, 0]:
        axis.set_ylim(bottom=0)
    title = f"Points over {reference} (dotted), paired; star: chosen on the development split"
    figure.suptitle(title, fontsize=9)
    return figure


def teachers(table: pd.DataFrame, reference: str) -> Figure:
    """What a student gains over the reference against its teacher's own NDCG@10.

    Args:
        table: of ``tables.teachers_and_students``.
    """
    figure, (axis,) = panels(1, 4.6)
    axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
    rules, names = list(table["rule"].unique()), list(table["teacher"].unique())
    for row in _points(table).itertuples():
        mean, place = row.teacher_mean, rules.index(row.rule)
        style = looks.of_line(names.index(row.teacher)) | {"marker": looks.MARKERS[place]}
        axis.errorbar(
            mean + 0.002 * place, row.value,  # side by side
            xerr=[[mean - row.teacher_low], [row.teacher_high - mean]],
            yerr=[[row.value - row.low], [row.high - row.value]],
            markersize=6, capsize=2, linewidth=1, label=f"{row.teacher}, {row.rule}", **style,
        )  # fmt: skip
    axis.set(
        xlabel="teacher's own NDCG@10 (95 % interval)",
        ylabel=f"student's NDCG@10, points over\n{reference} (95 % interval, paired)",
    )
    return legend(figure, axis, 2)
