"""The report on mined negatives: one HTML file that needs neither a network nor a script.

Figures are SVG inside the page, with letters as text and the page's own colours, so that they are
readable on a light and a dark ground.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nvret import __version__
from nvret.analysis import ceilings, looks, suspects
from nvret.analysis.inspection import Inspection
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import normalise
from nvret.utils.store import atomic_file, hashed

if TYPE_CHECKING:
    from IPython.display import HTML

FAMILIES = {  # its name, how its parameter is written, what its figure's axis says
    "perc-pos": ("Percentage of the positive's score", "{:.0%}", "percentage of the positive (%)"),
    "margin-pos": ("Margin below it", "{:.4g}", "margin (teacher's score)"),
}
HUBS = 8
BINS = 40
INK = "#010203"  # stands for the page's colour of letters until the SVG is written
NEGATIVE, SUSPECT, POSITIVE, RANDOM = looks.BLUE, looks.VERMILION, looks.GREEN, looks.ORANGE
VARIABLES = {"negative": NEGATIVE, "suspect": SUSPECT, "positive": POSITIVE, "random": RANDOM}
STYLE = {  # small figures, so that the letters stay large on a phone
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "grid.color": "#999999", "grid.linewidth": 0.3, "font.size": 9},
    **{"figure.figsize": (4.2, 3.0), "figure.constrained_layout.use": True},
    **{"legend.columnspacing": 1, "legend.handlelength": 1.6},
    **{"savefig.transparent": True, "svg.fonttype": "none"},
}


def save_html(inspection: Inspection, path: Path | str, *, overwrite: bool = False) -> Path:
    """Write the report.

    Raises:
        NvretError: the file exists, and ``overwrite`` is false.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise NvretError(f"{path} exists, expected a new file (or overwrite)")
    with atomic_file(path) as partial_file:
        partial_file.write_text(page(inspection), encoding="utf-8")
    return path


def show(inspection: Inspection) -> HTML:
    """A shorter report as the output of a notebook's cell."""
    from IPython.display import HTML

    text = html.escape(page(inspection, suspicious=20, sample=20), quote=True)
    return HTML(
        '<div><iframe sandbox="allow-scripts" title="Report on mined negatives" '
        f'style="width:100%;height:44rem;border:1px solid #8888" srcdoc="{text}"></iframe></div>'
    )


def page(inspection: Inspection, *, suspicious: int = 30, sample: int = 40) -> str:
    """The report as HTML, with so many suspicious negatives, and pairs to browse.

    Everything that is put into it is escaped.
    """
    filters = {"share": share, "number": "{:,}".format, "score": "{:.3f}".format}
    worst = inspection.suspicious()
    return looks.page(
        "inspect.html",
        filters | {"setting": _setting, "cut": _cut},
        inspection=inspection,
        counts=inspection.counts,
        version=__version__,
        title=f"Mined negatives of {inspection.dataset.name}",
        findings=findings(inspection),
        figures=_figures(inspection),
        suspicious=_cases(inspection, worst.head(suspicious)),
        suspicious_all=len(worst),
        sample=_sample(inspection, sample),
        hubs=inspection.rows.groupby("negative")["query"].nunique().nlargest(HUBS),
        hub_limit=suspects.hub_limit(len(inspection.dataset.queries)),
        families=FAMILIES,
        facts=pd.json_normalize(inspection.facts, sep=" ").iloc[0].sort_index(),
        suspects=suspects,
        ceilings=ceilings,
    )


def share(value: float) -> str:
    """A share as per cent, with a decimal where it is small.

    >>> share(0.5), share(0.0123), share(float("nan"))
    ('50 %', '1.2 %', '–')
    """
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.{1 if abs(value) < 0.3 else 0}f} %"


def _setting(value: float, family: str) -> str:
    """A percentage or a margin as it is read."""
    return FAMILIES[family][1].format(value).replace("%", " %")


def findings(inspection: Inspection) -> list[tuple[str, str]]:
    """What to know first: (kind, sentence), kind one of "good", "look", "note"."""
    counts, rows, hidden = inspection.counts, inspection.rows, inspection.hidden
    lines = []
    if labelled := int(rows["labelled"].sum()):
        lines.append(("look", f"{labelled:,} negatives are labelled relevant for their query."))
    if hidden is not None:
        value, low, high = map(share, hidden.rate)
        sentence = (
            f"Hidden labels know {hidden.false:,} of {hidden.negatives:,} negatives of "
            f"{hidden.queries:,} queries to be answers: {value} (95 % interval {low} to {high}), "
            "a lower bound."
        )
        lines.append(("look" if hidden.false else "good", sentence))
    by_text = int(rows[suspects.TEXT].any(axis=1).sum())
    sentence = f"{by_text:,} share much of their" if by_text else "None shares much of its"
    lines.append(("look" if by_text else "good", f"{sentence} positive's wording."))
    above = counts["above"] / counts["negatives"]
    sentence = f"{counts['above']:,} ({share(above)}) score at or above their positive"
    lines.append(("look" if above > 0.01 else "good", f"{sentence}, by this teacher."))
    if counts["short"]:
        sentence = f"{counts['short']:,} of {counts['pairs']:,} pairs have fewer than "
        sentence += f"{counts['asked']} negatives; {counts['empty']:,} have none."
        lines.append(("look" if counts["empty"] else "note", sentence))
    else:
        lines.append(("good", f"Every pair has its {counts['asked']} negatives."))
    sentence = (
        f"{rows.loc[rows['hub'], 'negative'].nunique():,} passages are mined for "
        f"{suspects.hub_limit(len(inspection.dataset.queries)):,} queries or more, one for "
        f"{rows['mined_for'].max():,}."
    )
    return [*lines, ("note", sentence), *(("look", warning) for warning in inspection.warnings)]


def _cases(inspection: Inspection, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Negatives with their texts, ids and signs, ready to be read."""
    dataset, cases = inspection.dataset, rows.to_dict("records")
    queries, corpus = dataset.queries["id"], dataset.corpus["id"]
    for case in cases:
        case["reasons"] = [text for sign, text in suspects.REASONS.items() if case[sign]]
        case["query_id"] = queries[case["query"]].as_py()
        case["query"] = dataset.query_texts[case["query"]]
        for name in ("positive", "negative"):
            case[f"{name}_id"] = corpus[case[name]].as_py()
            case[name] = dataset.passages[case[name]]
        sides = [("positive", "negative"), ("negative", "positive")]
        case["marked"] = {one: _marked(case[one], case[other]) for one, other in sides}
        case["cut"] = {one: _marked(_cut(case[one]), case[other]) for one, other in sides}
        case["run"] = []
        if any(case[sign] for sign in suspects.TEXT):
            case["run"] = suspects.longest_run(case["positive"], case["negative"])
    return cases


def _cut(text: str) -> str:
    """The beginning of a text that is too long to be shown whole; else nothing."""
    return text[:180] if len(text) > 220 else ""


def _marked(text: str, other: str) -> Markup:
    """A text with the words that another has too in <mark>, but for those of three letters."""
    shared = set(normalise(other).split())
    pieces = [
        f"<mark>{escape(piece)}</mark>" if len(piece) > 3 and normalise(piece) in shared
        else escape(piece)
        for piece in re.split(r"(\w+)", text)
    ]  # fmt: skip
    return Markup("".join(pieces))


def _sample(inspection: Inspection, number: int) -> list[list[dict[str, Any]]]:
    """The negatives of some pairs, in rank order; the same pairs whatever the table's order."""
    queries, passages = inspection.dataset.queries["id"], inspection.dataset.corpus["id"]
    rows = inspection.rows.sort_values(["pair", "rank"])
    pairs = rows.drop_duplicates("pair")[["query", "positive"]].to_numpy()
    keys = [hashed(f"{queries[a].as_py()} {passages[b].as_py()}") for a, b in pairs]
    chosen = rows["pair"].unique()[np.argsort(keys, kind="stable")[:number]]
    groups = rows[rows["pair"].isin(chosen)].groupby("pair")
    return [_cases(inspection, group) for _, group in groups]


def _figures(inspection: Inspection) -> list[dict[str, str]]:
    """Name, title, caption and SVG of each figure."""
    figures = []
    for name, draw in {"scores": _scores, "room": _room, "survival": _survival}.items():
        with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
            figure = Figure()
            axis = figure.add_subplot()
            title, caption = draw(axis, inspection)
            if axis.get_legend_handles_labels()[0]:
                figure.legend(loc="outside upper left", ncols=2)
            svg = _svg(figure, name)
        figures.append({"name": name, "title": title, "text": caption, "svg": svg})
    return figures


def _scores(axis: Axes, inspection: Inspection) -> tuple[str, str]:
    """Distributions of the scores of positives, negatives and, with a teacher, random passages."""
    rows = inspection.rows
    groups = [
        (rows.groupby("pair")["positive_score"].first(), "positives", POSITIVE, "-"),
        (rows["score"], "negatives", NEGATIVE, "--"),
    ]
    if inspection.random_scores is not None:
        groups.append((inspection.random_scores, "random passages", RANDOM, ":"))
    edges = np.histogram_bin_edges(np.concatenate([values for values, *_ in groups]), BINS)
    for values, label, colour, line in groups:
        bars = 100 * np.histogram(values, edges)[0] / max(len(values), 1)
        axis.stairs(bars, edges, color=colour, linestyle=line, label=label)
        axis.stairs(bars, edges, color=colour, alpha=0.15, fill=True)
    axis.set(xlabel="teacher's score", ylabel="share of each group (%)")
    return "Scores", (
        f"Median of the positives {rows['positive_score'].median():.3f}, of the negatives "
        f"{rows['score'].median():.3f}. Positives of pairs without negatives are not in the table."
    )


def _room(axis: Axes, inspection: Inspection) -> tuple[str, str]:
    """How far below its ceiling each negative lies; without a ceiling, below its positive."""
    bounded = bool(np.isfinite(inspection.rows["room"]).all())
    values = inspection.rows["room" if bounded else "gap"]
    low, high = np.quantile(values, [0, 0.995])
    bars, edges = np.histogram(values, BINS, (low, max(high, low + 1e-6)))
    axis.stairs(100 * bars / len(values), edges, fill=True, color=NEGATIVE)
    axis.axvline(0, color=SUSPECT, linewidth=1.4, linestyle="--")
    axis.set(xlabel=f"{'ceiling' if bounded else 'positive’s score'} − score of the negative")
    axis.set(ylabel="negatives (%)")
    if bounded:
        caption = "A pile at 0 says that the ceiling decides which negatives are taken."
        return "Room below the ceiling", caption
    caption = "The method sets no ceiling; left of the line a negative beats its positive."
    return "Distance to the positive", caption


def _survival(axis: Axes, inspection: Inspection) -> tuple[str, str]:
    """What would stay of this table under each percentage, or under each margin if it has one."""
    family = "margin-pos" if inspection.facts["method"]["name"] == "margin-pos" else "perc-pos"
    table, chosen = inspection.survival[family], inspection.suggestions[family]
    percentage = family == "perc-pos"
    scale = 100 if percentage else 1
    for column, label, colour, line in (
        ("pairs", "pairs that keep one at least", POSITIVE, ":"),
        ("others", "other negatives", NEGATIVE, "--"),
        ("suspects", "suspicious by text or label", SUSPECT, "-"),
    ):
        if table[column].notna().any():
            x, y = scale * table["parameter"], 100 * table[column]
            axis.plot(x, y, color=colour, linestyle=line, label=label)
    caption = (
        "Of this table: mining anew fills the free places with the next candidates. "
        "Stricter to the right."
    )
    if chosen.parameter is not None:
        axis.axvspan(scale * chosen.low, scale * chosen.high, color="#999999", alpha=0.25)
        axis.axvline(scale * chosen.parameter, color=INK, linewidth=1)
        caption += " The line is the suggestion, the band its interval."
    axis.set(xlabel=FAMILIES[family][2], ylabel="would stay (%)", ylim=(0, 101))
    if percentage:
        axis.invert_xaxis()  # stricter to the right, as with the margin
    return f"What a {'percentage' if percentage else 'margin'} would keep", caption


def _svg(figure: Figure, name: str) -> str:
    """SVG with the page's colours in it; ``name`` starts its ids, which must differ in a page."""
    target = io.StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(target, format="svg", metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for variable, colour in VARIABLES.items():  # which a page may lighten on a dark ground
        text = text.replace(colour.lower(), f"var(--{variable},{colour})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    size = re.search(r'viewBox="([^"]+)"', text)
    return re.sub(r"<svg [^>]*>", f'<svg viewBox="{size[1]}" aria-hidden="true">', text, count=1)
