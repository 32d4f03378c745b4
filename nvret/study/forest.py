"""Forest plots: an estimate and its interval for each row, of arms, settings or claims."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nvret.analysis import looks, statistics
from nvret.analysis.looks import BLACK, BLUE, GREY, VERMILION
from nvret.study.arms import BASE
from nvret.study.figures import panels, points

ROWS = 8  # of a panel of arms, at most
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


def _forest(
    parts: Mapping[str, pd.DataFrame], labels: Sequence[str] | None, xlabel: str, *,
    width: int = 44, inches: tuple[float, float] = (3.2, 1.6), **options: Any,
) -> Figure:  # fmt: skip
    """A panel a part.

    Args:
        parts: by title; columns label, style (keywords of matplotlib), value, low, high.
        labels: from top to bottom; one without a row has an empty line. None: each part's own.
        width: of a line of the labels, in characters.
        inches: that a column of labels takes, and a panel.
        options: of ``plt.subplots``.
    """
    each = [list(rows["label"]) if labels is None else list(labels) for rows in parts.values()]
    names = {
        label: fill(re.sub(r"(?<=\w)\+(?=\w)", " + ", label), width, break_on_hyphens=False)
        for label in itertools.chain(*each)
    }
    breaks = [[names[label].count("\n") for label in own] for own in each]
    height = max(
        max(len(own) + sum(own), 0.75 * len(own) * (1 + max(own, default=0))) for own in breaks
    )
    columns = 1 if labels is not None else len(parts)
    figure, axes = panels(
        len(parts), 1.1 + 0.2 * height, inches[0] * columns + inches[1] * len(parts), grid="x",
        sharey=labels is not None, **options,
    )  # fmt: skip
    for axis, own, (title, rows) in zip(axes, each, parts.items(), strict=True):
        axis.axvline(0, color=BLACK, linewidth=0.8)
        for row in rows.itertuples():
            axis.errorbar(
                row.value, own.index(row.label), markersize=5, capsize=2, linewidth=1.2,
                xerr=[[row.value - row.low], [row.high - row.value]], **row.style,
            )  # fmt: skip
        axis.set_title(title, fontsize=9)
        if labels is None or axis is axes[0]:
            axis.set_yticks(range(len(own)), [names[label] for label in own])
            axis.set_ylim(max(1, *map(len, each)) - 0.4, -0.6)
    figure.supxlabel(xlabel, fontsize=9)
    return figure


def differences(table: pd.DataFrame, student: str) -> Figure:
    """Forest plot of ``tables.differences``, at most ``ROWS`` rows a panel.

    Few arms: a panel for the first test set, and one for the average. More: on the first test set
    a panel for each setting and a row for each method; an arm that is alone in its setting is left
    to the table. Where that would be most arms, they fill panels in their order.
    """
    rows = points(table[table["student"] == student])
    plain = min(rows["reference"], key=len)  # the others name a setting besides
    zero, *shared = plain.split(", ")
    words = [
        [word for word in label.removeprefix(f"{student}: ").split(", ") if word not in shared]
        for label in rows["arm"]
    ]
    rows = rows.assign(
        label=[", ".join(own[len(own) > 1 and own[0] == zero :]) for own in words],
        name=[own[0] for own in words],
        setting=[", ".join(own[1:]) for own in words],
        style=rows["arm"].map(looks.of_method),
    )
    sets = list(dict.fromkeys(rows["dataset"]))
    first = rows[rows["dataset"] == sets[0]]
    by_setting = {  # each with one zero
        setting: own[own["reference"] == own["reference"].mode()[0]].assign(label=own["name"])
        for setting, own in first.groupby("setting", sort=False)
    }
    by_setting = {name: own for name, own in by_setting.items() if len(own) > 1 or not name}
    title, labels, parts = f"Student: {student}", None, {}
    if len(first) <= ROWS:
        labels = list(first["label"])
        shown = sets[:1] if len(sets) == 2 else [sets[0], sets[-1]]  # of one set it is the mean
        parts = {name: rows[rows["dataset"] == name] for name in shown}
    elif 2 * sum(map(len, by_setting.values())) > len(first):
        title = f"{title}, {sets[0]}"
        titles = (fill(name or "own setting", 22, break_on_hyphens=False) for name in by_setting)
        parts = dict(zip(titles, by_setting.values(), strict=True))
        shown = set().union(*(own["label"] for own in parts.values()))
        labels = [name for name in dict.fromkeys(first["name"]) if name in shown]
    else:
        places = np.array_split(np.arange(len(first)), -(-len(first) // ROWS))
        parts = {" " * n + sets[0]: first.iloc[own] for n, own in enumerate(places)}
    zeros = {reference for own in parts.values() for reference in own["reference"]}
    where = " in the same setting" * (len(zeros) > 1)
    based = "; dotted: base model" * (BASE in set(first["label"]))
    xlabel = f"NDCG@10, points above {zero}{where} (95 % interval){based}"
    figure = _forest(parts, labels, xlabel, sharex=True)
    for axis, own in zip(figure.axes, parts.values(), strict=True):
        for place in _base(rows, own.iloc[0], plain):
            axis.axvline(place, color=GREY, linewidth=1.2, linestyle=":", zorder=0)
    figure.suptitle(", ".join([title, *shared]), fontsize=10)
    return figure


def _base(rows: pd.DataFrame, one: pd.Series, plain: str) -> pd.Series:
    """Where the base model stands among rows like ``one``: empty, or one place."""
    rows = rows[rows["dataset"] == one["dataset"]]
    base = rows.loc[rows["label"] == BASE, "value"]
    if one["reference"] == plain:
        return base
    reference = rows[(rows["arm"] == f"{one['student']}: {one['reference']}")]
    return base - reference["value"].iloc[0] if len(reference) else base.iloc[:0]


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
    xlabel = "points of NDCG@10, 95 % interval; square: both signs"
    return _forest(parts, labels, xlabel, sharex=True)


def ledger(table: pd.DataFrame) -> Figure:
    """Forest plot of ``ledger.build``, grouped by question; the paper's difference beside each.

    Drawn are the rows with an interval in points of NDCG@10; a star marks the primary ones.
    """
    rows = points(table[(table["unit"] == "points") & table["low"].notna()])
    rows = rows.assign(
        label=np.where(rows["primary"], "★ ", "") + rows["claim"] + " · " + rows["student"],
        style=rows["verdict"].map(VERDICTS),
    )
    heads = list(dict.fromkeys(rows["section"]))
    labels = [name for head in heads for name in (head, *rows["label"][rows["section"] == head])]
    xlabel = f"in-domain points of NDCG@10, 95 % interval; linear up to {LINEAR:g} point"
    figure = _forest({"": rows}, labels, xlabel, width=130, inches=(6.4, 4.0))
    axis = figure.axes[0]
    places = [labels.index(label) for label in rows["label"]]
    axis.plot(100 * rows["paper"].astype(float), places, "|", color=BLACK, markersize=7, zorder=1)
    for place in map(labels.index, heads):
        axis.axhspan(place - 0.5, place + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
        axis.get_yticklabels()[place].set_fontweight("bold")
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=1)
    left, right = axis.get_xlim()
    axis.set_xticks([x for x in TICKS if left <= x <= right])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    handles = [Line2D([], [], markersize=5, label=name, **VERDICTS[name]) for name in VERDICTS]
    handles.append(Line2D([], [], color=BLACK, marker="|", linestyle="", label="paper"))
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="outside upper center", frameon=False)
    return figure
