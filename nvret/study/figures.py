"""Figures of trained students: forest plots, sweeps, teachers, losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvret.analysis import looks
from nvret.analysis.looks import AXES, BLACK, COLUMN_WIDTH, GREY
from nvret.study.scores import COLLAPSED
from nvret.study.tables import OWN_SETTING


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


def legend(figure: Figure, axis: Axes, columns: int, x: str = "", y: str = "") -> Figure:
    """The labels of one panel, above all of them, and what their axes show together."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=columns)
    if x:
        figure.supxlabel(x, fontsize=9)
    if y:
        figure.supylabel(y, fontsize=9)
    return figure


def intervals(
    axis: Axes, x: Any, rows: pd.DataFrame, value: str = "value", scale: float = 1, **style: Any
) -> None:
    """A point at the value of each row, with a bar from its low to its high."""
    middle, low, high = (scale * rows[name] for name in (value, "low", "high"))
    style = {"markersize": 5, "capsize": 2, "linewidth": 1.2} | style
    axis.errorbar(x, middle, yerr=[middle - low, high - middle], **style)


def band(axis: Axes, x: pd.Series | pd.Index, rows: pd.DataFrame, **style: Any) -> None:
    """A line through the rows' values, over the band from low to high."""
    axis.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.2, linewidth=0)
    axis.plot(x, rows["value"], markersize=4, linewidth=1.3, **style)


def points(table: pd.DataFrame) -> pd.DataFrame:
    """The table's differences and their intervals as value, low and high in points."""
    estimates = 100 * table[["difference", "low", "high"]].astype(float)
    return table.assign(value=estimates["difference"], low=estimates["low"], high=estimates["high"])


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
            style = looks.of_line(colours.index(key[:-1])) | {"linestyle": ""}
            style |= {"markerfacecolor": "white"} if collapsed else {}
            intervals(axis, x, rows, label=label, **style)
        axis.set_title(pair, fontsize=9)
        axis.set_xticks(range(len(corpora)), names)
        axis.set_xlim(-0.5, len(corpora) - 0.5)
    axes[0].set_ylabel("NDCG@10, points,\n95 % interval, paired", fontsize=9)
    return legend(figure, axes[0], 2, "corpus, and its number of passages")


def learning_rates(table: pd.DataFrame) -> Figure:
    """``tables.learning_rates``: a panel a student; the star is the choice."""
    students = table.groupby("student", sort=False)
    figure, axes = panels(students.ngroups, 3.6, 3.2 * students.ngroups)
    for axis, (student, own) in zip(axes, students, strict=True):
        for number, (temperature, rows) in enumerate(own.groupby("temperature")):
            rows, label = rows.sort_values("learning_rate"), f"temperature {temperature:g}"
            intervals(axis, rows["learning_rate"], rows, label=label, **looks.of_line(number))
        best = own[own["chosen"]]
        axis.plot(best["learning_rate"], best["value"], "*", color=BLACK, markersize=12, zorder=3)
        axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
        axis.set_xscale("log")
        rates = own["learning_rate"].unique()
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.set_xticks([], minor=True)
        axis.set(title=student, xlabel="learning rate")
        axis.legend(fontsize=8)
    axes[0].set_ylabel(
        "NDCG@10 on the development split,\npoints over the base model (95 % interval)"
    )
    return figure


def losses(logs: pd.DataFrame, arms: pd.DataFrame, student: str, batch_size: int) -> Figure:
    """Training loss (``Results.logs``): mean over seeds, band from the lowest to the highest.

    The last step, whose batch may hold a single pair, is left out. Who guesses blindly among the
    passages that a pair chooses from has their logarithm as loss: with in-batch negatives those
    of the whole batch, so that arms with and without have a panel each.

    Args:
        arms: of ``Results.arms``.
    """
    own = arms.loc[logs["arm"].unique()]
    own = own[own["student"] == student]
    passages = (1 + own["num_negatives"]) * np.where(own["in_batch_negatives"], batch_size, 1)
    groups = list(passages.groupby(passages))
    figure, axes = panels(len(groups), 3.8, 3.2 * len(groups), grid=None)
    for axis, (number, group) in zip(axes, groups, strict=True):
        for label in group.index:
            curves = logs[logs["arm"] == label].pivot(index="step", columns="seed", values="loss")
            curves = curves.iloc[:-1]
            window = max(1, len(curves) // 12)
            rows = curves.rolling(window, min_periods=1).mean().agg(["mean", "min", "max"], axis=1)
            rows.columns = ["value", "low", "high"]
            band(axis, rows.index, rows, label=label.removeprefix(f"{student}: "),
                 markevery=max(1, len(curves) // 8), **looks.of_method(label))  # fmt: skip
        blind = f"ln {number}: a blind guess"
        axis.axhline(np.log(number), color=GREY, linestyle=":", linewidth=1, label=blind)
        axis.set(xlabel="training step", ylabel="InfoNCE loss (nats)")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    steps = f"{window} step{'s' * (window > 1)}"
    figure.suptitle(f"Student: {student} (running mean over {steps})", fontsize=10)
    return figure


def sampling(table: pd.DataFrame, student: str) -> Figure:
    """``tables.differences`` of one method on the first test set, against what it draws from."""
    own = points(table[table["student"] == student])
    own = own[own["dataset"] == own["dataset"].iloc[0]]
    figure, (axis,) = panels(1, 3.8)
    for place, (kind, rows) in enumerate(own.dropna(subset="k").groupby("sampling", sort=False)):
        rows = rows.sort_values("k")
        label = f"{rows['method'].iloc[0]}, {kind}"
        band(axis, rows["k"], rows, label=label, **looks.of_line(place))
    axis.axhline(0, color=BLACK, linewidth=0.8, label=own["reference"].iloc[0])
    for method in ("Random", "Naive"):
        for value in own.loc[own["method"].str.startswith(method), "value"]:
            style = {"color": looks.of_method(method)["color"], "linestyle": ":"}
            axis.axhline(value, label=method.lower(), linewidth=1.2, **style)
    axis.set_xlabel("k: drawn from a pair's k best candidates", fontsize=9)
    axis.set_ylabel("NDCG@10, points,\n95 % interval, paired", fontsize=9)
    axis.set_title(f"Student: {student}", fontsize=10)
    return legend(figure, axis, 2)


def sweeps(
    table: pd.DataFrame, reference: str, best: Sequence[str], random: Sequence[float]
) -> Figure:
    """``tables.sweep`` against each method's parameter, a column a method.

    Args:
        best: labels of the arms that were chosen on the development split; drawn as stars.
        random: random negatives less the reference, in NDCG@10; empty without such an arm.
    """
    families = [family for family in AXES if family in set(table["family"])]
    below = {"hardness": "hardness (%)", "false": "known\npositives (%)"}
    if table["filled"].lt(0.9).any():
        below = {"filled": "negatives\nfound (%)"} | below
    figure, axes = panels(
        len(families), 3.0 + 1.3 * len(below), 2.3 * len(families), rows=1 + len(below),
        sharey="row", sharex="col", height_ratios=[2, *(1 for _ in below)],
    )  # fmt: skip
    for column, family in zip(axes.T, families, strict=True):
        top, bottom = column[0], column[-1]
        rows = table[table["family"] == family].sort_values("parameter")
        rows = rows.rename(columns={"difference": "value"})
        x = rows["parameter"] * (100 if family == "perc-pos" else 1)
        style = looks.of_method(str(rows["method"].iloc[0]))
        band(top, x, rows, **style)
        chosen = rows["arm"].isin(best)
        top.plot(x[chosen], rows["value"][chosen], "*", color=BLACK, markersize=11)
        for name, value in [(reference, 0.0), *(("Random", value) for value in random)]:
            colour = looks.of_method(name)["color"]
            top.axhline(100 * value, color=colour, linestyle=":", linewidth=1.2, zorder=1)
        for axis, name in zip(column[1:], below, strict=True):
            axis.plot(x, 100 * rows[name], markersize=3, linewidth=1, **style)
        bottom.set_xlabel(AXES[family], fontsize=9)
        if family == "shifted":
            top.set_xscale("symlog", linthresh=1)
            bottom.set_xticks(sorted(set(x)) if len(x) < 5 else [1, 10, 100])
            bottom.xaxis.set_major_formatter("{x:g}")
    labels = ("NDCG@10, points,\n95 % interval", *below.values())
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    for axis in axes[1:, 0]:
        axis.set_ylim(bottom=0)
    title = (
        f"Points over {reference} (dotted, 0), paired; black dots: random negatives; "
        "star: chosen on the development split"
    )
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
    for row in points(table).itertuples():
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
