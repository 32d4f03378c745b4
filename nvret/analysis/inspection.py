"""Are mined negatives any good? Counts, scores, ceilings, suspects, and what another bound keeps.

``nvret.analysis.inspection_report`` shows it as a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import methods, negatives, teachers
from nvret.analysis import audit, ceilings, suspects
from nvret.data import RetrievalDataset
from nvret.sampling import draw_rows, pair_keys
from nvret.utils.errors import NvretError


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """What a table of negatives looks like beside its texts and labels.

    Attributes:
        rows: of ``nvret.negatives.rows_of``, a row for each negative, and ceiling (inf: none),
            room (ceiling - score), gap (positive_score - score), ratio (score / positive_score;
            NaN where the positive scores 0 or less), the signs of ``nvret.analysis.suspects``, and
            suspect (has a sign in its text or labels, whatever it scores).
        counts: numbers by name: queries, pairs, negatives, asked (a pair), short, empty, passages
            (different negatives), at_ceiling (negatives at or above their ceiling), suspects (by
            text or label), above (at or above the positive's score), repeats.
        survival, suggestions: of `nvret.analysis.ceilings`, by "perc-pos" and "margin-pos".
    """

    dataset: RetrievalDataset
    method: str  # what mined the table, in words
    facts: dict[str, Any]  # of ``nvret.negatives.provenance``
    rows: pd.DataFrame
    counts: dict[str, int]
    survival: dict[str, pd.DataFrame]
    suggestions: dict[str, ceilings.Suggestion]
    random_scores: np.ndarray | None  # (pairs,) of a random passage each, with a teacher
    hidden: audit.FalseNegatives | None  # by labels that mining did not see
    warnings: list[str]  # what makes the numbers doubtful

    def __repr__(self) -> str:
        return (
            f"<{self.dataset.name}, {self.method}: {self.counts['negatives']} negatives for "
            f"{self.counts['pairs']} pairs, {self.counts['suspects']} suspicious>"
        )

    def suspicious(self) -> pd.DataFrame:
        """The rows of the negatives that have a sign, first the worst."""
        ordered = self.rows.iloc[suspects.order(self.rows)]
        signs = [sign for sign in suspects.REASONS if sign != "hub"]
        return ordered[ordered[signs].any(axis=1)]


def inspect(
    table: pa.Table,
    dataset: RetrievalDataset,
    *,
    hidden: pa.Table | None = None,
    teacher: str | teachers.Teacher | teachers.Scorer | None = None,
    progress: bool = True,
) -> Inspection:
    """Inspect the negatives that ``nvret.mining.mine`` found.

    Args:
        table: with its provenance.
        hidden: more labels, columns query_id, corpus_id, score; those that the data set holds too
            are no news and do not count.
        teacher: the table's own; adds the scores of random passages to compare with.
        progress: show a bar while a teacher reads the texts.
    Raises:
        NvretError: the table has no provenance or no row, or names an id or a pair that the data
            set does not have; the teacher is another one.

    >>> from nvret import mining
    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> table = mining.mine(toy, "bm25", mining.NaiveTopK(), 1, progress=False)
    >>> inspection = inspect(table, toy)
    >>> inspection.counts["negatives"], inspection.rows["negative"].tolist()
    (1, [1])
    """
    facts = negatives.provenance(table)
    if not table.num_rows:
        raise NvretError(f"{dataset.name}: the table holds no negatives, expected at least one")
    rows = negatives.rows_of(table, dataset)
    positive = rows["positive_score"]
    rows["ceiling"] = ceilings.recorded(facts, rows["query"], positive)
    rows["room"] = rows["ceiling"] - rows["score"]
    rows["gap"] = positive - rows["score"]
    rows["ratio"] = (rows["score"] / positive).where(positive > 0)
    labelled = audit.known(table, audit.pairs_of(dataset, *dataset.pairs))
    known = None
    if hidden is not None:
        unseen = audit.unseen(dataset, hidden)
        labelled |= audit.known(table, unseen)
        known = audit.summary(table, unseen, hidden)
    rows = rows.join(suspects.signs(dataset, rows, labelled))
    rows["suspect"] = suspect = rows[[*suspects.TEXT, "labelled"]].any(axis=1).to_numpy()
    counts = _counts(rows, dataset, facts)
    families = ceilings.FAMILIES
    return Inspection(
        dataset=dataset,
        method=", ".join(table["method"].unique().to_pylist()),
        facts=facts,
        rows=rows,
        counts=counts,
        survival={family: ceilings.survival(family, rows, suspect) for family in families},
        suggestions={family: ceilings.suggest(family, rows, suspect) for family in families},
        random_scores=None if teacher is None else _random(dataset, facts, teacher, progress),
        hidden=known,
        warnings=_warnings(counts, facts, dataset),
    )


def _counts(rows: pd.DataFrame, dataset: RetrievalDataset, facts: dict) -> dict[str, int]:
    filled = np.bincount(rows["pair"], minlength=len(dataset.pairs[0]))
    asked = facts["num_negatives"]
    counts = {
        "queries": len(np.unique(dataset.pairs[0])),
        "pairs": len(filled),
        "negatives": len(rows),
        "asked": asked,
        "short": (filled < asked).sum(),
        "empty": (filled == 0).sum(),
        "passages": rows["negative"].nunique(),
        "at_ceiling": (rows["room"] <= 0).sum(),
        "suspects": rows["suspect"].sum(),
        "above": rows["above"].sum(),
        "repeats": rows.duplicated(["pair", "negative"]).sum(),
    }
    return {name: int(value) for name, value in counts.items()}


def _random(dataset: RetrievalDataset, facts: dict, teacher: Any, progress: bool) -> np.ndarray:
    """(pairs,) scores of a random passage for each pair."""
    if isinstance(teacher, str) and any((facts.get("prompts") or {}).values()):
        teacher = teachers.DenseTeacher(teacher, prompts=facts["prompts"])
    scorer = teachers.prepare(teacher, dataset, progress=progress)
    if facts.get("teacher_fingerprint") not in (None, scorer.fingerprint):
        raise NvretError(
            f"teacher {scorer.name} is not the one that mined the table ({facts.get('teacher')}), "
            "expected the same weights and lengths"
        )
    queries, keys = dataset.pairs[0], pair_keys(*dataset.pair_ids.values(), 0)
    positives = [dataset.positives[row] for row in queries]
    drawn = draw_rows(keys, dataset.corpus.num_rows, 1, positives)[:, 0]
    return scorer.pair_scores(queries[drawn >= 0], drawn[drawn >= 0])


def _warnings(counts: dict, facts: dict, dataset: RetrievalDataset) -> list[str]:
    name, below = facts["method"]["name"], facts.get("positives_below_zero")
    mined_for, at_ceiling, repeats = facts["pairs"], counts["at_ceiling"], counts["repeats"]
    cases = [
        (facts["dataset_fingerprint"] != dataset.fingerprint,
         "The data differ from those that the table was mined from; every id is known, but texts, "
         "labels or other queries may be others."),
        (mined_for != counts["pairs"],
         f"The table was mined for {mined_for} pairs, the data hold {counts['pairs']}: pairs that "
         "were never mined for count as empty."),
        (below,
         f"{below} positives score below 0. A percentage of such a score lies above it unless "
         "mining was told to be safe, and a ratio to it says nothing."),
        (name not in methods.BY_NAME,
         f"No mining method {name!r} is known here, so that its ceilings are not."),
        (at_ceiling,
         f"{at_ceiling} negatives do not lie below the method's ceiling: the table was changed "
         "after mining, or another method made these rows."),
        (repeats, f"{repeats} rows repeat a passage that their pair has already."),
    ]  # fmt: skip
    return [sentence for applies, sentence in cases if applies]
