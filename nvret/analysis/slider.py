"""The percentage as a slider: which candidates the ceiling keeps and drops, in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nvret.analysis import looks
from nvret.methods import TopKPercPos
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from ipywidgets import VBox

STYLES = {  # readable on a light and a dark page; the words say the same as the looks
    "dropped": "opacity:.55;text-decoration:line-through",
    "negative": "font-weight:bold",
    "further down": "",
}


def verdicts(
    scores: pd.Series, positive_score: float, perc: float, num_negatives: int = 4
) -> pd.Series:
    """What TopK-PercPos does with each candidate: "dropped", "negative" or "further down".

    Args:
        scores: of the candidates, best first, in the unit of ``positive_score``.
        positive_score: the teacher's score of the labelled positive.

    >>> verdicts(pd.Series([0.9, 0.7, 0.6, 0.5]), 0.8, 0.95, num_negatives=2).tolist()
    ['dropped', 'negative', 'negative', 'further down']
    """
    if not scores.is_monotonic_decreasing:
        raise NvretError("scores rise with the rank, expected the best candidate first")
    ceiling = TopKPercPos(perc).ceiling(pd.Series([positive_score]).to_numpy())[0]
    below = scores < ceiling
    taken = below & (below.cumsum() <= num_negatives)
    return below.map({True: "further down", False: "dropped"}).mask(taken, "negative")


def page(candidates: pd.DataFrame, positive_score: float, perc: float) -> str:
    """The candidates as a table in HTML; arguments as of `slider`."""
    labels = verdicts(candidates["score"], positive_score, perc).rename("verdict")
    styles = labels.map(STYLES)
    rows = pd.concat([labels, candidates], axis=1).rename_axis(index=None, columns="rank")
    rows = rows.pipe(looks.Table).apply(lambda _: styles).format(precision=3)
    return (
        f"<p>The positive scores {positive_score:.3f}; negatives must score below "
        f"{positive_score:.3f} × {perc:.0%} = {positive_score * perc:.3f}.</p>"
        f"{rows.to_html(table_uuid='slider')}"
    )


def slider(candidates: pd.DataFrame, positive_score: float) -> VBox:
    """A slider over the percentage, and below it what becomes of each candidate.

    Args:
        candidates: a row for each, best first: ``score`` and any other columns to show; the index
            is the rank.
        positive_score: the teacher's score of the labelled positive.
    """
    import ipywidgets

    percentage = ipywidgets.FloatSlider(
        0.95, min=0.5, max=1.2, step=0.01, description="percentage", readout_format=".0%"
    )
    table = ipywidgets.HTML(page(candidates, positive_score, percentage.value))

    def update(change: dict) -> None:
        table.value = page(candidates, positive_score, change["new"])

    percentage.observe(update, "value")
    return ipywidgets.VBox([percentage, table])
