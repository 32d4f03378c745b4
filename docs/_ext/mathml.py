"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator


def formula(latex: str, display: str) -> str:
    """MathML of a formula.

    Args:
        latex: without the dollars.
        display: ``inline`` or ``block``.
    Raises:
        ExtensionError: the formula is not understood.
    """
    try:
        drawn = convert(latex.strip(), display=display)
    except Exception as error:  # latex2mathml has some twenty, of no common class
        raise ExtensionError(f"formula {latex.strip()!r}: {error!r}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", drawn):  # it would stand there as it is
        raise ExtensionError(f"formula {latex.strip()!r}: {unknown[0]} is not known")
    return drawn


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{formula(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
