"""Forest plot of the ledger: every tested claim with its interval, grouped by question."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nvret.study.figures import COLUMN_WIDTH

# Okabe and Ito's palette; the marker says the same as the colour
LOOKS = {
    "reproduced": ("#0072B2", "o"),
    "not reproduced": ("#D55E00", "X"),
    "undecided": ("#777777", "s"),
}
LINEAR = 1.0  # points up to which the axis is linear; beyond, equal steps are equal ratios


def draw(ledger: pd.DataFrame) -> Figure:
    """Each row that has an interval in points of NDCG@10; the paper's difference beside it.

    Args:
        ledger: of ``nvret.study.ledger.build``.
    """
    rows = ledger[(ledger["unit"] == "points") & ledger["low"].notna()]
    places, labels, heads, place = [], [], [], 0
    for section, group in rows.groupby("section", sort=False):
        heads.append((place, section))
        places += range(place + 1, place + 1 + len(group))
        labels += [f"{row.id} · {row.student}" for row in group.itertuples()]
        place += 1 + len(group)
    figure, axis = plt.subplots(
        figsize=(COLUMN_WIDTH, 1.5 + 0.165 * max(place, 4)), layout="constrained"
    )
    axis.axvline(0, color="#000000", linewidth=0.8)
    for y, (_, row) in zip(places, rows.iterrows(), strict=True):
        colour, marker = LOOKS[row["verdict"]]
        value, low, high = (100 * row[name] for name in ("difference", "low", "high"))
        axis.plot([low, high], [y, y], color=colour, linewidth=1.4)
        axis.plot(value, y, marker, color=colour, markersize=4.5)
        if pd.notna(row["paper"]):
            axis.plot(100 * row["paper"], y, "|", color="#000000", markersize=7, zorder=1)
    for y, _ in heads:
        axis.axhspan(y - 0.5, y + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
    axis.set_yticks([*places, *(y for y, _ in heads)], [*labels, *(name for _, name in heads)])
    for tick in axis.get_yticklabels()[len(places) :]:
        tick.set_fontweight("bold")
    axis.tick_params(axis="y", labelsize=6.5, length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylim(max(place, 1) - 0.3, -0.7)
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=1)
    ticks = [-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20]
    left, right = axis.get_xlim()
    axis.set_xticks([x for x in ticks if left <= x <= right])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel(f"points of NDCG@10, 95 % interval; linear up to {LINEAR:g} point", fontsize=9)
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4.5, label=verdict)
        for verdict, (colour, marker) in LOOKS.items()
    ]
    handles.append(Line2D([], [], color="#000000", marker="|", linestyle="", label="paper"))
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="outside upper center", frameon=False)
    return figure
