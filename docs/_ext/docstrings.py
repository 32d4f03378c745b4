"""Docstrings are written to be read in the source; here they become reStructuredText.

A Markdown table becomes a list-table, lines ``name: text`` become a list, and bars and at-signs are
themselves.
"""

from __future__ import annotations

import re
from itertools import groupby

from sphinx.application import Sphinx

NAMED = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (?=\S)")
RULE = re.compile(r"^\|[-:| ]+\|$")


def adapt(lines: list[str]) -> list[str]:
    """The lines of a docstring in reStructuredText.

    >>> adapt(["| a | b |", "|---|---|", "| 1 | 2 |"])[4:]
    ['   * - a', '     - b', '   * - 1', '     - 2']
    >>> adapt(["ids: (P, K) rows,", "    or -1.", "scores: likewise."])
    ['* ``ids``: (P, K) rows,', '  or -1.', '* ``scores``: likewise.']
    >>> adapt(["the share |x & y| of ``a | b``"])
    ['the share \\\\|x & y\\\\| of ``a | b``']
    """
    adapted = []
    for blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
        block = list(paragraph)
        adapted += block if blank else _paragraph(block)
    return adapted


def _paragraph(block: list[str]) -> list[str]:
    if block[0].lstrip().startswith(">>>"):
        return block
    if len(block) > 2 and RULE.match(block[1].strip()):
        return _table(block)
    head = ["Attributes:"] if block[0] == "Attributes:" else []
    named = block[len(head) :]
    if named and all(NAMED.match(line) for line in named if not line.startswith(" ")):
        return [
            f"  {line.strip()}" if line.startswith(" ") else NAMED.sub(r"* ``\1``: ", line)
            for line in map(_literal, named)
        ]
    return [_literal(line) for line in block]


def _table(block: list[str]) -> list[str]:
    rows = [line.strip().strip("|").split("|") for line in block if not RULE.match(line.strip())]
    table = ["", ".. list-table::", "   :header-rows: 1", ""]
    for first, *others in rows:
        table += [f"   * - {first.strip()}", *(f"     - {cell.strip()}" for cell in others)]
    return table


def _literal(line: str) -> str:
    """Bars that mark no substitution, and ``NDCG@10``, which is no mail address."""
    parts = re.split(r"(``.*?``)", line)
    return "".join(
        part if n % 2 else re.sub(r"([|@])", r"\\\1", part) for n, part in enumerate(parts)
    )


def _process(
    app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = adapt(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon's is 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
