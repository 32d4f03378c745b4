"""How figures and tables look: one palette, a marker for each method, texts that stay texts."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas.io.formats.style import Styler

if TYPE_CHECKING:
    from IPython.display import HTML

COLUMN_WIDTH = 6.4  # inches
LINES = 15  # of a table that is shown as it stands
WIDTH = 300  # characters of a passage that are shown
# Okabe and Ito's palette, for the colour-blind
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#000000", "#777777"
COLOURS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK]
MARKERS = "osD^vP*"
METHODS = {  # part of a method's label -> its colour and marker in every figure
    "Base": ("#999999", "x"),
    "No mined": (GREEN, "*"),
    "Random": (BLACK, "D"),
    "Naive": (VERMILION, "o"),
    "shifted": (ORANGE, "v"),
    "Abs": (PURPLE, "s"),
    "MarginPos": (SKY, "^"),
    "PercPos": (BLUE, "P"),
}
AXES = {  # family of methods -> what its parameter is called
    "shifted": "ranks dropped (N)",
    "abs": "threshold (cosine)",
    "margin-pos": "margin (cosine)",
    "perc-pos": "percentage of the positive (%)",
}


def method_key(label: str) -> str:
    """The key of ``METHODS`` that a method's label holds."""
    return next(key for key in METHODS if key in label)


def of_method(label: str) -> dict[str, str]:
    """Colour and marker of a method's label, as keywords of matplotlib."""
    colour, marker = METHODS[method_key(label)]
    return {"color": colour, "marker": marker}


def of_line(place: int) -> dict[str, str]:
    """Colour and marker of a figure's n-th line, as keywords of matplotlib."""
    return {"color": COLOURS[place % 7], "marker": MARKERS[place % 7]}


class Table(Styler):
    """A table to show: ``frame.pipe(Table)`` is ``frame.style`` that escapes cells and labels.

    pandas puts them into a page as they are, and a data set may hold anything. Where ``format``
    names no way to write a number, a column of counts, which may be floats, is written as such.
    A notebook shows ``LINES`` rows, and the rest folded.

    >>> table = pd.DataFrame({"<b>": ["<script>"]}, ["<i>"]).pipe(Table).format(precision=1)
    >>> [tag in table.to_html() for tag in ("<b>", "<script>", "<i>", "&lt;script&gt;")]
    [False, False, False, True]
    >>> "12,000<" in pd.DataFrame({"n": [12e3, 5.0]}).pipe(Table).format(precision=1).to_html()
    True
    """

    def __init__(self, data: pd.DataFrame, **options: Any) -> None:
        super().__init__(data, **options)
        for axis in ("index", "columns"):
            self.format_index(escape="html", axis=axis)

    def format(self, formatter: Any = None, subset: Any = None, **options: Any) -> Table:
        """As pandas has it, and every text is escaped."""
        super().format(formatter, subset, **options | {"escape": "html"})
        if formatter is None and subset is None and self.data.columns.is_unique:
            numbers = self.data.select_dtypes("number")
            whole = [
                name
                for name, column in numbers.items()
                if column.abs().max() > 1 and (column.dropna() % 1 == 0).all()
            ]
            super().format("{:,.0f}", whole, na_rep=options.get("na_rep"))
        return self

    def _repr_html_(self) -> str:
        if len(self.data) <= LINES:
            return self.to_html()
        page = self.to_html(sparse_index=False)  # a merged cell may not reach over the fold
        head, body = page.split("<tbody>")
        rows = re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
        tables = [
            f"{head}<tbody>{''.join(part)}</tbody></table>" for part in (rows[:LINES], rows[LINES:])
        ]
        folded = tables[1][tables[1].index("<table") :]  # the style is there already
        return f"{tables[0]}<details><summary>{len(rows) - LINES} more</summary>{folded}</details>"


def page(template: str, filters: Mapping[str, Callable] | None = None, **values: Any) -> str:
    """A page of ``templates/``, in which all values are escaped."""
    environment = Environment(
        loader=PackageLoader("nvret.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(values)


def example(question: str, passages: Mapping[str, str]) -> HTML:
    """A question and the beginnings of passages, each behind its label, as a notebook shows them.

    >>> example("<i>who</i>?", {"negative": "a <script>"}).data
    '<p><b>&lt;i&gt;who&lt;/i&gt;?</b></p><ul><li>negative: a &lt;script&gt;</li></ul>'
    """
    from IPython.display import HTML

    lines = (
        f"{label}: {text[:WIDTH]}{'…' if len(text) > WIDTH else ''}"
        for label, text in passages.items()
    )
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return HTML(f"<p><b>{html.escape(question)}</b></p><ul>{items}</ul>")
