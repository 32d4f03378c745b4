"""Figures of a report on mined negatives, as SVG that takes its ink from the page around it."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvret.analysis import ceilings
from nvret.analysis.inspection import Inspection
from nvret.analysis.looks import AXES, COLOURS

SIZE = (4.2, 3.0)  # inches; small, so that the letters stay large on a phone
NEGATIVE, SUSPECT, POSITIVE, RANDOM = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[4]
INK = "#010203"  # stands for the page's colour of letters until the SVG is written
VARIABLES = {"negative": NEGATIVE, "suspect": SUSPECT, "positive": POSITIVE, "random": RANDOM}
_BINS = 40


def scores(found: Inspection) -> Figure:
    """Distributions of the scores of positives, negatives and, with a teacher, random passages."""
    figure, axis = _panel()
    rows = found.rows
    groups = {
        "positives": (rows.groupby("pair")["positive_score"].first(), POSITIVE, "-"),
        "negatives": (rows["score"], NEGATIVE, "--"),
    }
    if found.random_scores is not None:
        groups["random passages"] = (found.random_scores, RANDOM, ":")
    edges = np.histogram_bin_edges(np.concatenate([v for v, *_ in groups.values()]), _BINS)
    for label, (values, colour, line) in groups.items():
        share = 100 * np.histogram(values, edges)[0] / max(len(values), 1)
        axis.stairs(share, edges, color=colour, linestyle=line, linewidth=1.6, label=label)
        axis.stairs(share, edges, color=colour, alpha=0.15, fill=True)
    axis.set(xlabel="teacher's score", ylabel="share of each group (%)")
    return _done(figure, axis)


def ratios(found: Inspection) -> Figure:
    """Cumulative share of the negatives by their score as a share of their positive's."""
    figure, axis = _panel()
    top = 1.3
    for label, mask, colour, line in _groups(found):
        values = np.sort(found.rows["ratio"][mask].dropna())
        if len(values):
            share = 100 * np.arange(len(values) + 1) / len(values)
            axis.step(
                np.r_[values[0], values],
                share,
                where="post",
                color=colour,
                linestyle=line,
                label=label,
            )
            top = max(top, float(np.quantile(values, 0.99)))
    axis.axvline(1, color=INK, linewidth=1, linestyle=":")
    axis.annotate(
        "the positive", (1.02, 3), color=INK, fontsize=9, rotation=90, ha="left", va="bottom"
    )
    axis.set(
        xlabel="score of the negative ÷ its positive's",
        ylabel="negatives at or below (%)",
        xlim=(0, min(top, 3)),
        ylim=(0, 101),
    )
    return _done(figure, axis)


def room(found: Inspection) -> Figure:
    """How far below its ceiling each negative lies; without a ceiling, below its positive."""
    figure, axis = _panel()
    bounded = bool(np.isfinite(found.rows["room"]).all())
    values = found.rows["room" if bounded else "gap"]
    low, high = np.quantile(values, [0, 0.995])
    share, edges = np.histogram(values, _BINS, (low, max(high, low + 1e-6)))
    axis.stairs(100 * share / len(values), edges, fill=True, color=NEGATIVE)
    axis.axvline(0, color=SUSPECT, linewidth=1.4, linestyle="--")
    axis.set(
        xlabel=f"{'ceiling' if bounded else 'positive’s score'} − score of the negative",
        ylabel="negatives (%)",
    )
    return _done(figure, axis, legend=False)


def survival(found: Inspection, family: ceilings.Family) -> Figure:
    """What would stay of this table under each percentage, or each margin."""
    figure, axis = _panel()
    table = found.survival[family]
    scale = 100 if family == "perc-pos" else 1
    lines = {
        "pairs": ("pairs that keep one at least", POSITIVE, ":"),
        "others": ("other negatives", NEGATIVE, "--"),
        "suspects": ("suspicious by text or label", SUSPECT, "-"),
    }
    for column, (label, colour, line) in lines.items():
        if table[column].notna().any():
            axis.plot(
                scale * table["parameter"], 100 * table[column], color=colour, linestyle=line,
                linewidth=1.6, label=label,
            )  # fmt: skip
    chosen = found.suggestions[family]
    if chosen.parameter is not None:
        axis.axvspan(scale * chosen.low, scale * chosen.high, color="#999999", alpha=0.25)
        axis.axvline(scale * chosen.parameter, color=INK, linewidth=1)
    label = AXES[family].replace("(cosine)", "(teacher's score)")
    axis.set(xlabel=label, ylabel="would stay (%)", ylim=(0, 101))
    if family == "perc-pos":
        axis.invert_xaxis()  # stricter to the right, as with the margin
    return _done(figure, axis)


def hubs(found: Inspection) -> Figure:
    """How many queries the most frequent negatives were mined for, by rank."""
    figure, axis = _panel()
    queries = found.hubs["queries"].to_numpy()
    axis.plot(np.arange(1, len(queries) + 1), queries, color=NEGATIVE, linewidth=1.6)
    axis.set(xscale="log", yscale="log" if queries.max() > 10 else "linear")
    axis.set(xlabel="passage, by how often it is mined", ylabel="queries it is mined for")
    axis.set_ylim(bottom=0.9)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
    return _done(figure, axis, legend=False)


def svg(figure: Figure, name: str) -> str:
    """SVG to be put into a page: letters as text, ids of its own, the page's ink.

    Args:
        name: starts the ids, which must differ within a page.
    """
    target = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            target, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = target.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for variable, colour in VARIABLES.items():  # which a page may lighten on a dark ground
        text = text.replace(colour.lower(), f"var(--{variable},{colour})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    size = re.search(r'viewBox="([^"]+)"', text)
    return re.sub(r"<svg [^>]*>", f'<svg viewBox="{size[1]}" aria-hidden="true">', text, count=1)


def _groups(found: Inspection) -> list[tuple[str, np.ndarray, str, str]]:
    suspect = found.suspect
    return [
        ("other negatives", ~suspect, NEGATIVE, "--"),
        ("suspicious by text or label", suspect, SUSPECT, "-"),
    ]


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.add_subplot()
    axis.grid(linewidth=0.3, color="#999999", alpha=0.6)
    for spine in ("top", "right"):
        axis.spines[spine].set_visible(False)
    return figure, axis


def _done(figure: Figure, axis: Axes, *, legend: bool = True) -> Figure:
    """Letters and axes in the page's ink; the legend above."""
    if legend:
        figure.legend(
            loc="outside upper left",
            fontsize=9,
            labelcolor=INK,
            frameon=False,
            ncols=2,
            columnspacing=1,
            handlelength=1.6,
        )
    axis.tick_params(which="both", colors=INK, labelsize=9)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=INK, size=9.5)
    for spine in axis.spines.values():
        spine.set_color(INK)
    return figure
