"""Mined negatives that may be answers: what their text, their labels and their scores give away.

None of these signs proves a false negative; a person has to look.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

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
# Passages from which a run of words is boilerplate, which says nothing: as many, and this share
COMMON = 5, 0.001
SIMILAR = 0.5  # word-trigram Jaccard similarity; mining itself drops copies from 0.8 on


def signs(dataset: RetrievalDataset, rows: pd.DataFrame, labelled: np.ndarray) -> pd.DataFrame:
    """The signs of each negative, compared with the positive of its own pair.

    Args:
        rows: of `nvret.negatives.rows_of`.
        labelled: (rows,) bool: known to be relevant, by hidden labels too.
    Returns:
        bool columns of ``REASONS``; ``mined_for``: queries that the passage is a negative of.
    """
    mined_for = rows.groupby("negative")["query"].transform("nunique")
    titles = np.array([normalise(title) for title in dataset.corpus["title"].to_pylist()], object)
    title = titles[rows["negative"]]
    columns = {
        "labelled": labelled,
        "near_duplicate": _similar(dataset.passages, rows),
        **_wording(dataset.passages, rows),
        "above": rows["score"] >= rows["positive_score"],
        "same_title": (title == titles[rows["positive"]]) & (title != ""),
        "hub": mined_for >= hub_limit(len(dataset.queries)),
        "mined_for": mined_for,
    }
    return pd.DataFrame(columns, index=rows.index)


def hub_limit(queries: int) -> int:
    """Queries from which a passage counts as a hub: 1 % of them, and 5 at least.

    >>> hub_limit(100), hub_limit(2000)
    (5, 20)
    """
    return max(5, int(np.ceil(0.01 * queries)))


def order(rows: pd.DataFrame) -> np.ndarray:
    """Places of the negatives, the most suspicious first.

    Those that are labelled relevant, that resemble the positive's text, that score at or above it,
    that have its title, the others; within each group by ``gap``, positive_score - score.
    """
    groups = [rows["labelled"], rows[TEXT].any(axis=1), rows["above"], rows["same_title"]]
    tier = np.select([group.to_numpy(bool) for group in groups], range(4), 4)
    return np.lexsort([rows["gap"], tier])


def longest_run(left: str, right: str) -> list[str]:
    """The longest run of words that two texts share, as normalised.

    >>> longest_run("In 1889 the tower was opened.", "The tower was opened, at last")
    ['the', 'tower', 'was', 'opened']
    """
    a, b = normalise(left).split(), normalise(right).split()
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return a[match.a : match.a + match.size]


def _similar(passages: Sequence[str], rows: pd.DataFrame) -> np.ndarray:
    """(rows,) bool: positive and negative have the similarity ``SIMILAR`` or more."""
    positives, others = (np.unique(rows[name]) for name in ("positive", "negative"))
    texts = ([passages[row] for row in side] for side in (positives, others))
    i, j, _ = near_duplicate_pairs(*texts, threshold=SIMILAR)
    similar = pd.MultiIndex.from_arrays([positives[i], others[j]])
    return pd.MultiIndex.from_frame(rows[["positive", "negative"]]).isin(similar)


def _wording(passages: Sequence[str], rows: pd.DataFrame) -> dict[str, list[bool]]:
    """Whether one text contains the other, and whether they share ``RUN`` words in a row.

    A run that many passages have is their form, not their matter, and does not count.
    """
    used = np.unique(rows[["positive", "negative"]])
    plain = {row: f" {normalise(passages[row])} " for row in used}
    pairs = list(zip(rows["positive"], rows["negative"], strict=True))

    @functools.lru_cache(maxsize=1)  # the negatives of a positive follow each other
    def runs(positive: int) -> set[str]:
        return set(_runs(plain[positive]))

    shared = [runs(a).intersection(_runs(plain[b])) for a, b in pairs]
    wanted = set().union(*shared)
    frequency = Counter(
        run for text in plain.values() for run in wanted.intersection(_runs(text))
    )  # fmt: skip
    most = max(COMMON[0], int(COMMON[1] * len(plain)))
    return {
        "contains": [plain[a] in plain[b] or plain[b] in plain[a] for a, b in pairs],
        "shared": [any(frequency[run] <= most for run in some) for some in shared],
    }


def _runs(text: str) -> Iterator[str]:
    words = text.split()
    return (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))
