"""Are mined negatives any good? Counts, scores, ceilings, suspects, and what another bound keeps.

A table of negatives says what the teacher thought of each. Beside the texts and the labels that
tells a practitioner much before anything is trained: how many pairs came away empty, how near the
negatives come to their ceilings, which ones look like answers that nobody labelled.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import methods, negatives, teachers
from nvret.analysis import ceilings, hidden_labels, suspects
from nvret.data import RetrievalDataset
from nvret.methods import Method
from nvret.negatives import rows_of
from nvret.sampling import draw_rows, pair_keys
from nvret.utils.errors import NvretError
from nvret.utils.store import atomic_file

__all__ = ["Inspection", "inspect", "is_suspect"]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a table of negatives looks like beside its texts and labels.

    Attributes:
        dataset: the texts and labels.
        facts: of ``nvret.negatives.provenance``.
        rows: a row for each negative, in the table's order: pair (number of the (query, positive)
            pair), query, positive, negative (rows of the data set), rank, score, positive_score,
            ceiling (inf: none), room (ceiling - score), gap (positive_score - score), ratio
            (score / positive_score; NaN where the positive scores 0 or less), and the signs of
            ``nvret.analysis.suspects``.
        counts: numbers by name: queries, pairs, negatives, asked (a pair), short, empty, passages
            (different negatives), at_ceiling (negatives at or above their ceiling), suspects (by
            text or label), above (at or above the positive's score), repeats.
        survival: by "perc-pos" and "margin-pos" what would stay (`ceilings.survival`).
        suggestions: by the same names (``nvret.analysis.ceilings.suggest``).
        hubs: passages mined for most queries: negative, queries.
        random_scores: (pairs,) of a random passage each; None without a teacher.
        hidden: known false negatives by labels that mining did not see; None without them.
        warnings: what makes the numbers doubtful, a sentence each.
    """

    dataset: RetrievalDataset
    facts: dict[str, Any]
    rows: pd.DataFrame
    counts: dict[str, int]
    survival: dict[str, pd.DataFrame]
    suggestions: dict[str, ceilings.Suggestion]
    hubs: pd.DataFrame
    random_scores: np.ndarray | None
    hidden: hidden_labels.Hidden | None
    warnings: Sequence[str]

    def __repr__(self) -> str:
        counts, method = self.counts, self.facts.get("method")
        return (
            f"<{self.dataset.name}, {method}: {counts['negatives']} negatives for "
            f"{counts['pairs']} pairs, {counts['suspects']} suspicious>"
        )

    @property
    def suspect(self) -> np.ndarray:
        """(rows,) bool: negatives with a sign in their text or labels, whatever they score."""
        return is_suspect(self.rows)

    def suspicious(self, number: int = 50) -> pd.DataFrame:
        """The rows of the most suspicious negatives, those that have a sign, first the worst."""
        ordered = self.rows.iloc[suspects.order(self.rows)]
        signs = [*suspects.TEXT, "labelled", "above", "same_title"]
        return ordered[ordered[signs].any(axis=1)].head(number)

    def save_html(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the report: one file that needs no network.

        Raises:
            NvretError: the file exists, and ``overwrite`` is false.
        """
        from nvret.analysis import inspection_report

        path = Path(path)
        if path.is_dir() or (path.exists() and not overwrite):
            raise NvretError(f"{path} exists, expected a new file (or overwrite)")
        page = inspection_report.page(self)
        try:
            with atomic_file(path) as partial:
                partial.write_text(page, encoding="utf-8")
        except OSError as error:
            raise NvretError(f"{path} cannot be written: {error}") from error
        return path

    def _repr_html_(self) -> str:
        from nvret.analysis import inspection_report

        page = html.escape(inspection_report.page(self, suspicious=20, sample=20), quote=True)
        return (
            '<iframe sandbox="allow-scripts" title="Report on mined negatives" '
            f'style="width:100%;height:44rem;border:1px solid #8888" srcdoc="{page}"></iframe>'
        )


def inspect(
    table: pa.Table,
    dataset: RetrievalDataset,
    *,
    method: Method | None = None,
    hidden: pa.Table | None = None,
    teacher: str | teachers.Teacher | teachers.Scorer | None = None,
    progress: bool = True,
) -> Inspection:
    """Inspect the negatives that ``nvret.mining.mine`` found.

    Args:
        table: of ``mining.mine`` or ``negatives.load``, with its provenance.
        dataset: what they were mined from.
        method: that mined them; None: as the table's label names it.
        hidden: more labels, columns query_id, corpus_id, score; those that the data set holds too
            are no news and do not count.
        teacher: the table's own; adds the scores of random passages to compare with.
        progress: show a bar while a teacher reads the texts.
    Raises:
        NvretError: the table has no provenance or no row, or names an id or a pair that the data
            set does not have; the teacher is another one.

    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> found = inspect(mining.mine(toy, "bm25", mining.NaiveTopK(), 1, progress=False), toy)
    >>> found.counts["negatives"], found.rows["negative"].tolist()
    (1, [1])
    """
    facts = negatives.provenance(table)
    if not table.num_rows:
        raise NvretError(f"{dataset.name}: the table holds no negatives, expected at least one")
    rows = rows_of(table, dataset)
    if method is None and (said := facts.get("method")):
        method = methods.build_method(said["name"], **said["parameters"])
    limiting = rows["positive_score"]
    if facts.get("ceiling_positive") == "lowest":
        limiting = rows.groupby("query")["positive_score"].transform("min")
    safe = facts.get("negative_positives") == "safe"
    ceiling = np.inf if method is None else method.ceiling(limiting.to_numpy(), safe=safe)
    rows = rows.assign(
        ceiling=ceiling,
        room=ceiling - rows["score"],
        gap=rows["positive_score"] - rows["score"],
        ratio=(rows["score"] / rows["positive_score"]).where(rows["positive_score"] > 0),
    )
    labelled = set(zip(*(part.tolist() for part in dataset.pairs), strict=True))
    seen = None if hidden is None else hidden_labels.look(table, dataset, hidden)
    if seen is not None:
        labelled |= seen[0]
    rows = rows.join(suspects.signs(dataset, rows, labelled))
    suspect = is_suspect(rows)
    families = ("perc-pos", "margin-pos")
    hubs = rows[["negative", "mined_for"]].drop_duplicates()
    hubs = hubs.sort_values(["mined_for", "negative"], ascending=[False, True])
    scores = None
    if teacher is not None:
        scores = _random(dataset, facts, teacher, progress)
    counts = _counts(rows, dataset, facts)
    return Inspection(
        dataset,
        facts,
        rows,
        counts,
        {family: ceilings.survival(family, rows, suspect) for family in families},
        {family: ceilings.suggest(family, rows, suspect) for family in families},
        hubs.rename(columns={"mined_for": "queries"}).reset_index(drop=True),
        scores,
        None if seen is None else seen[1],
        _warnings(counts, facts, dataset, method),
    )


def is_suspect(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) bool: negatives with a sign in their text or labels, whatever they score."""
    return rows[[*suspects.TEXT, "labelled"]].any(axis=1).to_numpy()


def _counts(rows: pd.DataFrame, dataset: RetrievalDataset, facts: dict) -> dict[str, int]:
    filled = np.bincount(rows["pair"], minlength=len(dataset.pairs[0]))
    asked = int(facts.get("num_negatives", filled.max()))
    found = {
        "queries": len(np.unique(dataset.pairs[0])),
        "pairs": len(filled),
        "negatives": len(rows),
        "asked": asked,
        "short": (filled < asked).sum(),
        "empty": (filled == 0).sum(),
        "passages": rows["negative"].nunique(),
        "at_ceiling": (rows["room"] <= 0).sum(),
        "suspects": is_suspect(rows).sum(),
        "above": rows["above"].sum(),
        "repeats": rows.duplicated(["pair", "negative"]).sum(),
    }
    return {name: int(value) for name, value in found.items()}


def _random(dataset: RetrievalDataset, facts: dict, teacher: Any, progress: bool) -> np.ndarray:
    """(pairs,) scores of a random passage for each pair."""
    scorer = teachers.prepare(teacher, dataset, progress=progress)
    if facts.get("teacher_fingerprint") not in (None, scorer.fingerprint):
        raise NvretError(
            f"teacher {scorer.name} is not the one that mined the table ({facts.get('teacher')}), "
            "expected the same weights and lengths"
        )
    queries, passages = dataset.pairs
    ids = dataset.queries["id"].take(queries), dataset.corpus["id"].take(passages)
    banned = [dataset.positives[row] for row in queries]
    drawn = draw_rows(pair_keys(*ids, 0), dataset.corpus.num_rows, 1, banned)[:, 0]
    return scorer.pair_scores(queries[drawn >= 0], drawn[drawn >= 0])


def _warnings(counts: dict, facts: dict, dataset: RetrievalDataset, method) -> list[str]:
    found = []
    if facts.get("dataset_fingerprint") not in (None, dataset.fingerprint):
        found.append(
            "The data differ from those that the table was mined from; every id is known, but "
            "texts, labels or other queries may be others."
        )
    if facts.get("pairs", counts["pairs"]) != counts["pairs"]:
        found.append(
            f"The table was mined for {facts['pairs']} pairs, the data hold {counts['pairs']}: "
            "pairs that were never mined for count as empty."
        )
    if below := facts.get("positives_below_zero"):
        found.append(
            f"{below} positives score below 0. A percentage of such a score lies above it unless "
            "mining was told to be safe, and a ratio to it says nothing."
        )
    if method is None:
        found.append(f"No ceiling is known of the method {facts.get('method')!r}.")
    if counts["at_ceiling"]:
        found.append(
            f"{counts['at_ceiling']} negatives do not lie below the ceiling that the method's "
            "label gives. A percentage is rounded to whole per cent there; name the method itself "
            "to be exact."
        )
    if counts["repeats"]:
        found.append(f"{counts['repeats']} rows repeat a passage that their pair has already.")
    return found
