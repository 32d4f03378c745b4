"""Hardness or cleanliness: naive mining's negatives, less some of them.

Whatever drops a false negative puts an easier passage in its place, so that a student that gains
by it may have gained by either. Here the hidden positives are known (`nvret.analysis.audit`), and
the two are told apart: the *oracle* replaces all of them, the *placebo* as many true negatives of
equal score, a *dose* a share of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import negatives
from nvret.analysis import audit
from nvret.sampling import pair_keys
from nvret.study.config import Treatment
from nvret.utils.errors import NvretError, check_choice

DOSES = {"oracle": 0.0, "dose-25": 0.25, "dose-50": 0.5}  # hidden positives that are left in
PAIR = audit.KEYS[:2]
NEAR = 256  # neighbours by their scores on either side that are looked at first


def depth(hidden: pa.Table, num_negatives: int) -> int:
    """Ranks of naive mining that are enough for every treatment of ``num_negatives`` a pair.

    Each of them may be replaced, by a candidate that is none of the query's hidden positives.
    """
    counts = hidden["query_id"].value_counts().field("counts")
    return 2 * num_negatives + (pc.max(counts).as_py() or 0)


class Candidates:
    """What the treatments of one table have in common.

    Args:
        table: of `nvret.mining.mine` with ``NaiveTopK``, `depth` rows a pair.
        hidden: query_id, corpus_id of the hidden positives, as `audit.Hidden.pairs`.
        num_negatives: K, of each pair.
        seed: of the hash that chooses what a dose leaves in, and the order of the placebo.
    Raises:
        NvretError: a table of another method.
    """

    def __init__(
        self, table: pa.Table, hidden: pa.Table, num_negatives: int, seed: int = 0
    ) -> None:
        self.number, self.facts = num_negatives, negatives.provenance(table)
        if self.facts["method"]["name"] != "naive":
            raise NvretError(
                f"a treatment of {self.facts['method']['name']!r}, expected naive negatives"
            )
        rows = table.select([*audit.KEYS, "rank", "score"]).to_pandas()
        pair = rows.groupby(PAIR, sort=False).ngroup().to_numpy()
        order = np.lexsort((rows["rank"], pair))
        self.table, rows, self.pair = table.take(pa.array(order)), rows.iloc[order], pair[order]
        self.known = audit.known(self.table, hidden)
        self.first = rows.groupby(self.pair).cumcount().to_numpy() < num_negatives
        self.free = ~self.first & ~self.known
        self.scores = rows["score"].to_numpy(np.float64)
        self.spare = _spare(self.pair, self.free, self.scores, num_negatives)
        query, positive, negative = (self.table[name] for name in audit.KEYS)
        both = pc.binary_join_element_wise(query, positive, "\n")
        chosen = np.flatnonzero(self.first)
        keys = pair_keys(both.take(pa.array(chosen)), negative.take(pa.array(chosen)), seed)
        by_chance = chosen[np.argsort(keys, kind="stable")]
        self.false = by_chance[self.known[by_chance]]
        self.true = by_chance[~self.known[by_chance]]

    def treat(self, treatment: str | None) -> pa.Table:
        """The negatives that a student trains on.

        What is replaced gives way to the pair's next candidates that are not hidden positives. The
        placebo's true negatives are chosen over the whole table: each hidden positive, in the order
        of a hash, takes the one of another pair that is nearest in its own score and in the score
        of what would replace it, so that the mean score falls as it does for the oracle.

        Args:
            treatment: a name of ``Treatment``; None: the first K as they come.
        Returns:
            rows of the table, by pair and rank. Its provenance has the key ``treatment``: the name,
            ``hidden`` (positives among the first K of all pairs), ``left`` (of them), ``replaced``,
            ``score_difference`` (mean score of what is replaced less that of all hidden positives),
            and ``fall_difference`` (how much further a replaced score falls on average than the
            oracle's). A pair has fewer rows where the corpus holds no more candidates; the
            provenance counts them.
        Raises:
            NvretError: no such treatment, or a table that is not deep enough.
        """
        if treatment is not None:
            check_choice("treatment", treatment, get_args(Treatment))
        pair, false, scores, spare = self.pair, self.false, self.scores, self.spare
        if treatment == "placebo":
            lost = _nearest(false, self.true, scores, pair, spare)
        else:
            lost = false[round(DOSES.get(treatment or "", 1.0) * len(false)) :]
        gone = np.isin(np.arange(len(pair)), lost)
        needed = np.bincount(pair, gone)
        turn = pd.Series(self.free).groupby(pair).cumsum().to_numpy()
        taken = self.free & (turn <= needed[pair])
        cut = np.bincount(pair) >= self.facts["num_negatives"]  # not by the end of the corpus
        if (short := cut & (np.bincount(pair, taken) < needed)).any():
            row = int(np.argmax(pair == np.argmax(short)))
            query, positive = (self.table[name][row].as_py() for name in PAIR)
            raise NvretError(
                f"{treatment}: too few candidates to replace negatives of query {query!r} with "
                f"positive {positive!r}, expected a table of `depth` rows a pair"
            )
        kept = self.first & ~gone | taken
        full = int((np.bincount(pair, kept) >= self.number).sum())
        pairs = int(pair.max(initial=-1)) + 1
        own = scores[lost] - spare[pair[lost], _turn(pair[lost])]
        oracle = scores[false] - spare[pair[false], _turn(pair[false])]
        report = {
            "name": treatment or "naive",
            "hidden": len(false),
            "left": int((kept & self.known).sum()),
            "replaced": len(lost),
            "score_difference": _mean(scores[lost]) - _mean(scores[false]) if len(lost) else 0.0,
            "fall_difference": _mean(own) - _mean(oracle) if len(lost) else 0.0,
        }
        facts = self.facts | {
            "num_negatives": self.number,
            "pairs": pairs,
            "pairs_short": pairs - full,
            "pairs_empty": 0,
            "negatives_missing": pairs * self.number - int(kept.sum()),
            "treatment": report,
        }
        metadata = {"nvret": json.dumps(facts, sort_keys=True)}
        return self.table.filter(pa.array(kept)).replace_schema_metadata(metadata)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]  # what the corpus cannot replace has no fall
    return float(values.mean()) if len(values) else 0.0


def _spare(pair: np.ndarray, free: np.ndarray, scores: np.ndarray, number: int) -> np.ndarray:
    """(pairs, number + 1) scores of each pair's candidates that may replace; NaN: no more."""
    place = pd.Series(free).groupby(pair).cumsum().to_numpy() - 1
    spare = np.full((int(pair.max(initial=-1)) + 1, number + 1), np.nan)
    rows = free & (place < number)
    spare[pair[rows], place[rows]] = scores[rows]
    return spare


def _turn(pair: np.ndarray) -> np.ndarray:
    """How many of the same pair stand before each."""
    return pd.Series(pair).groupby(pair).cumcount().to_numpy()


def _nearest(
    wanted: np.ndarray, offered: np.ndarray, scores: np.ndarray, pair: np.ndarray, spare: np.ndarray
) -> np.ndarray:
    """For each wanted row an offered one of another pair, none twice.

    The nearest by its score and by that of its replacement, the next one that its pair has left.
    """
    following = spare[pair[wanted], _turn(pair[wanted])]
    order = np.argsort(scores[offered], kind="stable")
    values, homes = (own[offered[order]] for own in (scores, pair))
    rest, taken, used = spare[homes, 0], np.zeros(len(order), bool), np.zeros(len(spare), int)
    members = pd.Series(np.arange(len(homes))).groupby(homes).indices
    chosen = []
    for row, fallen in zip(wanted, following, strict=True):
        middle, width, done = int(values.searchsorted(scores[row])), NEAR, False
        while not done:
            window = slice(max(0, middle - width), middle + width)
            distance = (values[window] - scores[row]) ** 2
            distance += 0 if np.isnan(fallen) else (rest[window] - fallen) ** 2
            away = taken[window] | np.isnan(rest[window]) | (homes[window] == pair[row])
            distance[away] = np.inf
            least, width = distance.min(initial=np.inf), 4 * width
            # Whoever stands outside of the window is further away by the score alone
            outside = np.append(values[: window.start][-1:], values[window.stop :][:1])
            done = ((outside - scores[row]) ** 2 > least).all()
        if np.isinf(least):
            raise NvretError(
                f"placebo: {len(wanted)} hidden positives and {len(offered)} true negatives, "
                "expected as many of other pairs"
            )
        place = window.start + np.flatnonzero(distance == least)
        place = place[order[place].argmin()]  # of equals the first that was offered
        chosen.append(offered[order[place]])
        taken[place] = True
        home = homes[place]
        used[home] += 1
        rest[members[home]] = spare[home, used[home]]
    return np.array(chosen, dtype=np.int64)


def report(tables: Mapping[str, pa.Table], hidden: pa.Table) -> pd.DataFrame:
    """What each arm trains on: how many hidden positives, how hard.

    Args:
        tables: negatives by arm; those of `Candidates.treat` say what was replaced, others have no
            number.
        hidden: as of `Candidates`.
    Returns:
        a row an arm: negatives, hidden (among them), rate, ``share left`` (of naive mining's hidden
        positives), replaced, score difference and fall difference (see there), mean score, and
        hardness: the mean score of all negatives over that of their positives.
    """
    rows = []
    for arm, table in tables.items():
        facts = (negatives.provenance(table) if table.schema.metadata else {}).get("treatment", {})
        known = audit.known(table, hidden)
        score, positive = (pc.mean(table[name]).as_py() for name in ("score", "positive_score"))
        rows.append({
            "arm": arm, "negatives": len(table), "hidden": int(known.sum()),
            "rate": float(known.mean()), "replaced": facts.get("replaced", np.nan),
            "share left": facts["left"] / facts["hidden"] if facts.get("hidden") else np.nan,
            "score difference": facts.get("score_difference", np.nan),
            "fall difference": facts.get("fall_difference", np.nan),
            "mean score": score, "hardness": score / positive,
        })  # fmt: skip
    return pd.DataFrame(rows)
