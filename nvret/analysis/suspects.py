"""Mined negatives that may be answers: what their text, their labels and their scores give away.

None of these signs proves a false negative; a person has to look. What they need is at hand after
mining: the texts, the labels and the teacher's scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
import pandas as pd

from nvret.data import RetrievalDataset
from nvret.utils.near_duplicates import near_duplicate_pairs, normalise

REASONS = {  # column -> what a reader is told; the most telling sign first
    "labelled": "labelled relevant",
    "near_duplicate": "nearly the positive's words",
    "contains": "one text contains the other",
    "shared": "shares a long run of words",
    "above": "scores at or above the positive",
    "same_title": "same title",
    "hub": "mined for many queries",
}
TEXT = ["near_duplicate", "contains", "shared"]  # signs that do not depend on the teacher's score
RUN = 13  # words in a row; the length that GPT-3's authors took for a text that leaked
SIMILAR = 0.5  # word-trigram Jaccard similarity; mining itself drops copies from 0.8 on
HUB_SHARE, HUB_LEAST = 0.01, 5  # of the queries, and queries


class Run(NamedTuple):
    """The longest run of words that two texts share."""

    words: int
    text: str


def signs(dataset: RetrievalDataset, rows: pd.DataFrame, labelled: np.ndarray) -> pd.DataFrame:
    """The signs of each negative, compared with the positive of its own pair.

    Args:
        dataset: the texts.
        rows: columns query, positive, negative (rows of the data set), score, positive_score.
        labelled: (rows,) bool: known to be relevant, by hidden labels too.
    Returns:
        a row for each negative: bool columns of ``REASONS``; ``similarity`` (0 where it lies below
        ``SIMILAR``); ``mined_for``, the number of queries that the passage is a negative of.
    """
    mined_for = rows.groupby("negative")["query"].transform("nunique").to_numpy()
    similarity = _similarity(dataset.passages, rows)
    contains, shared = _wording(dataset.passages, rows)
    titles = [normalise(title) for title in dataset.corpus["title"].to_pylist()]
    same_title = [
        bool(titles[a]) and titles[a] == titles[b]
        for a, b in zip(rows["positive"], rows["negative"], strict=True)
    ]
    return pd.DataFrame(
        {
            "labelled": labelled,
            "near_duplicate": similarity >= SIMILAR,
            "contains": contains,
            "shared": shared,
            "above": rows["score"].to_numpy() >= rows["positive_score"].to_numpy(),
            "same_title": same_title,
            "hub": mined_for >= hub_limit(len(dataset.queries)),
            "similarity": similarity,
            "mined_for": mined_for,
        },
        index=rows.index,
    )


def hub_limit(queries: int) -> int:
    """Queries from which a passage counts as a hub: 1 % of them, and 5 at least.

    >>> hub_limit(100), hub_limit(2000)
    (5, 20)
    """
    return max(HUB_LEAST, int(np.ceil(HUB_SHARE * queries)))


def order(rows: pd.DataFrame) -> np.ndarray:
    """Places of the negatives, the most suspicious first.

    First those that are labelled relevant, then those whose text resembles the positive's, then
    those at or above its score, then those with its title, then the others; within each group the
    negative that comes nearest to its positive's score, or furthest above it, is first.

    Args:
        rows: columns of ``signs``, score and positive_score.
    """
    groups = [rows["labelled"], rows[TEXT].any(axis=1), rows["above"], rows["same_title"]]
    tier = np.select([np.asarray(group, bool) for group in groups], range(len(groups)), len(groups))
    gap = rows["positive_score"].to_numpy() - rows["score"].to_numpy()
    return np.lexsort([np.arange(len(rows)), gap, tier])


def reasons(row: pd.Series) -> list[str]:
    """What is told of one negative, in the order of ``REASONS``."""
    return [text for column, text in REASONS.items() if row[column]]


def longest_run(left: str, right: str) -> Run:
    """The longest run of words that two texts share, as normalised.

    >>> longest_run("In 1889 the tower was opened.", "The tower was opened, at last")
    Run(words=4, text='the tower was opened')
    """
    a, b = normalise(left).split(), normalise(right).split()
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return Run(match.size, " ".join(a[match.a : match.a + match.size]))


def _similarity(passages: Sequence[str], rows: pd.DataFrame) -> np.ndarray:
    """(rows,) Jaccard similarity of positive and negative; 0 where it lies below ``SIMILAR``."""
    sides = [np.unique(rows[name]) for name in ("positive", "negative")]
    texts = [[passages[row] for row in side] for side in sides]
    i, j, values = near_duplicate_pairs(*texts, threshold=SIMILAR)
    pairs = pd.MultiIndex.from_arrays([sides[0][i], sides[1][j]])
    wanted = pd.MultiIndex.from_frame(rows[["positive", "negative"]])
    return pd.Series(values, pairs, dtype=float).reindex(wanted).fillna(0.0).to_numpy()


def _wording(passages: Sequence[str], rows: pd.DataFrame) -> tuple[list[bool], list[bool]]:
    """Whether one text contains the other, and whether they share a long run of words."""
    used = np.unique(rows[["positive", "negative"]])
    plain = {int(row): normalise(passages[row]) for row in used}
    of_positive: tuple[int, set[str]] = (-1, set())  # the last positive and its runs
    contains, shared = [], []
    for positive, negative in zip(rows["positive"], rows["negative"], strict=True):
        a, b = f" {plain[positive]} ", f" {plain[negative]} "
        if of_positive[0] != positive:
            of_positive = positive, set(_runs(plain[positive]))
        contains.append(a in b or b in a)
        shared.append(any(run in of_positive[1] for run in _runs(plain[negative])))
    return contains, shared


def _runs(text: str) -> Iterator[str]:
    words = text.split()
    return (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))
