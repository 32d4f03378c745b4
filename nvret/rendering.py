"""An executed notebook as a fragment of HTML that needs nothing from a network.

nbconvert does the work. What it leaves to a browser with a network is done here: formulas become
MathML, which browsers draw without a script, and figures become files with a text in their place
for those who do not see them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from nvret.errors import NvretError

WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, frozen at its start
PNG_SIZE = slice(16, 24)  # width and height in the header of a PNG file
NUMERIC = re.compile(r"^(?:[-+−≤<]?[\d.,]+(?:e[-+]\d+)? ?%?[\[\], ]*|–|NaN|inf)*$")
LONG = 30  # characters that need a wide column
SENTENCE = re.compile(r"^(.+?[.:?])(?:\s|$)", re.DOTALL)


@dataclass(frozen=True)
class Rendered:
    """A notebook as HTML, with what its page and its card say of it.

    ``sections`` are (anchor, heading) of the second level; ``files`` are the figures by the path
    that ``body`` names.
    """

    name: str
    title: str
    question: str
    body: str
    sections: list[tuple[str, str]]
    files: dict[str, bytes] = field(repr=False)

    @property
    def first_figure(self) -> str | None:
        """Path of the figure that stands for the notebook."""
        return next(iter(self.files), None)


def render(path: Path, pages: Collection[str] = ()) -> Rendered:
    """Render one executed notebook.

    Args:
        path: of the ``.ipynb``.
        pages: names of the notebooks that have a page in the same folder; where the text names
            one, it becomes a link.
    Raises:
        NvretError: the file is no notebook, or it has no title.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NvretError(f"{path}: not a notebook ({error})") from error
    _tidy(notebook)
    html, resources = PageExporter(config=_config()).from_notebook_node(
        notebook, {"unique_key": path.stem, "output_files_dir": "figures"}
    )
    files = {name.replace("\\", "/"): data for name, data in (resources["outputs"] or {}).items()}
    soup = BeautifulSoup(html, "html.parser")
    heading = soup.find("h1")
    if heading is None:
        raise NvretError(f"{path}: expected a title (# ...) in the first cell")
    title = heading.get_text().strip()
    _polish(soup, files, {name: f"{name}.html" for name in pages if name != path.stem})
    sections = [(str(h["id"]), h.get_text()) for h in soup.find_all("h2") if h.get("id")]
    return Rendered(path.stem, title, _question(soup), str(soup), sections, files)


def formula(latex: str, display: str = "inline") -> str:
    """MathML of a formula.

    Args:
        latex: without the dollars.
        display: ``inline`` or ``block``.
    Raises:
        NvretError: the formula is not understood.

    >>> "<mi>τ</mi>" in formula(r"s(q,p)/\\tau").replace("&#x003C4;", "τ")
    True
    """
    try:
        drawn = convert(latex.strip(), display=display)
    except Exception as error:  # latex2mathml has some twenty, of no common class
        raise NvretError(f"formula {latex.strip()!r}: {error!r}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", drawn):  # it would stand there as it is
        raise NvretError(f"formula {latex.strip()!r}: {unknown[0]} is not known")
    return drawn


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas drawn instead of left to MathJax."""

    def inline_math(self, text: str) -> str:
        return formula(text)

    def block_math(self, text: str) -> str:
        return f'<span class="formula">{formula(text, "block")}</span>'


class PageExporter(HTMLExporter):
    """nbconvert's HTML of the cells alone."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown to HTML; the exporter's own, but for the renderer."""
        renderer = _Renderer(escape=False, exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def _config() -> Config:
    return Config(
        {
            "PageExporter": {
                "template_name": "basic",  # the cells alone: no page, style or script around them
                "exclude_input_prompt": True,
                "exclude_output_prompt": True,
            },
            "ExtractOutputPreprocessor": {"enabled": True},
        }
    )


def _tidy(notebook: NotebookNode) -> None:
    """Take out progress bars; say of each figure which section it belongs to and what it shows."""
    notebook.metadata.pop("widgets", None)
    heading = ""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,6} (.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        after = _said_next(notebook.cells[place + 1 :])
        for number, output in enumerate(figures, start=1):
            of = f" {number} of {len(figures)}" if len(figures) > 1 else ""
            title = _plain(heading).rstrip(".?!:")
            output.metadata["alt"] = f"Figure{of}, {title}. {_plain(after)}".strip()


def _said_next(cells: list[NotebookNode]) -> str:
    """First sentence of the text that follows, unless a new section or more code comes first."""
    if not cells or cells[0].cell_type != "markdown" or cells[0].source.lstrip().startswith("#"):
        return ""
    found = SENTENCE.match(cells[0].source.strip())
    return found[1] if found else ""


def _plain(markdown: str) -> str:
    """Markdown without its marks.

    >>> _plain("Right of the *line*, in `nq`")
    'Right of the line, in nq'
    """
    return re.sub(r"[*`$]|\s+(?=\s)", "", markdown)


def _question(soup: BeautifulSoup) -> str:
    for paragraph in soup.find_all("p"):
        text = paragraph.get_text()
        if text.startswith("Question."):
            return text.removeprefix("Question.").strip()
    return ""


def _polish(soup: BeautifulSoup, files: dict[str, bytes], links: dict[str, str]) -> None:
    """What a page needs beyond a notebook: tables and code that scroll, sizes, links."""
    for style in soup.find_all("style"):
        style.decompose()  # pandas' own, which knows no dark page
    for table in soup.find_all("table"):
        _boxed(soup, table)
    for image in soup.find_all("img"):
        if image["src"] in files:
            width, height = struct.unpack(">II", files[image["src"]][PNG_SIZE])
            image["width"], image["height"] = width, height
        image.wrap(soup.new_tag("a", href=image["src"]))  # full size, on a small screen
        image.parent.wrap(soup.new_tag("figure"))
    for heading in soup.find_all(["h2", "h3"]):
        heading["id"] = re.sub(r"\W+", "-", heading.get_text().lower()).strip("-")
    for code in soup.find_all("pre"):
        code["tabindex"] = "0"  # wide code scrolls, with a keyboard too
    for code in soup.find_all("code"):
        if code.string in links:
            code.wrap(soup.new_tag("a", href=links[code.string]))
    for cell in soup.select(".celltag_injected-parameters"):
        folded = cell.wrap(soup.new_tag("details"))
        summary = soup.new_tag("summary")
        summary.string = "Parameters of the profile"
        folded.insert(0, summary)


def _boxed(soup: BeautifulSoup, table: Tag) -> None:
    """Put a table into a box of its own that scrolls; say which cells are headings of what."""
    del table["border"]
    for cell in table.find_all("th"):
        cell["scope"] = "col" if cell.find_parent("thead") else "row"
    heading = table.find_previous(["h1", "h2", "h3", "h4"])
    label = f"Table, {heading.get_text()}" if heading else "Table"
    attributes = {"class": "table-box", "role": "region", "tabindex": "0", "aria-label": label}
    table.wrap(soup.new_tag("div", attrs=attributes))
    _align(table)


def _align(table: Tag) -> None:
    """Mark columns of numbers, and long texts. Columns are counted from the right, where rows agree
    even if headings at the left are merged."""
    body = [row.find_all(["td", "th"])[::-1] for row in table.select("tbody tr")]
    width = max(map(len, body), default=0)
    columns = [[row[n] for row in body if len(row) > n] for n in range(width)]
    numbers = [
        all(c.name == "td" and NUMERIC.match(c.get_text().strip()) for c in column)
        and any(c.get_text().strip() for c in column)
        for column in columns
    ]
    rows = [row.find_all("th")[::-1] for row in table.select("thead tr")]
    for row in body + [row for row in rows if not any(int(c.get("colspan", 1)) > 1 for c in row)]:
        for cell, number in zip(row, numbers, strict=False):
            if number:
                cell["class"] = "number"
            elif len(cell.get_text()) > LONG and cell.name == "td":
                cell["class"] = "text"
