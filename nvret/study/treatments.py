"""Hardness or cleanliness: naive mining's negatives, less some of them.

Whatever drops a false negative puts an easier passage in its place, so that a student that gains
by it may have gained by either. Here the hidden positives are known (`nvret.analysis.audit`), and
the two are told apart: the *oracle* replaces all of them, the *placebo* as many true negatives of
equal score, a *dose* a share of them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
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
from nvret.utils.errors import NvretError

DOSES = {"oracle": 0.0, "dose-25": 0.25, "dose-50": 0.5}  # hidden positives that are left in
PAIR = audit.KEYS[:2]


def depth(hidden: pa.Table, num_negatives: int) -> int:
    """Ranks of naive mining that are enough for every treatment of ``num_negatives`` a pair.

    Each of them may be replaced, by a candidate that is none of the query's hidden positives.
    """
    counts = hidden["query_id"].value_counts().field("counts")
    return 2 * num_negatives + (pc.max(counts).as_py() or 0)


def treat(
    table: pa.Table, hidden: pa.Table, num_negatives: int, treatment: str | None, seed: int = 0
) -> pa.Table:
    """The negatives that a student trains on.

    What is replaced gives way to the pair's next candidates that are not hidden positives. The
    placebo's true negatives are chosen over the whole table: each hidden positive, in the order of
    a hash, takes the one of another pair whose score is nearest to its own.

    Args:
        table: of `nvret.mining.mine` with ``NaiveTopK``, `depth` rows a pair.
        hidden: query_id, corpus_id of the hidden positives, as `audit.Hidden.pairs`.
        num_negatives: K, of each pair.
        treatment: a name of ``Treatment``; None: the first K as they come.
        seed: of the hash that chooses what a dose leaves in, and the order of the placebo.
    Returns:
        rows of the table, by pair and rank. Its provenance has the key ``treatment``: the name,
        ``hidden`` (positives among the first K of all pairs), ``left`` (of them), ``replaced``,
        ``replaced_score`` and ``replacement_score`` (means), and ``score_difference``: the mean
        score of what is replaced less that of all hidden positives.
        A pair has fewer rows where the corpus holds no more candidates; the provenance counts them.
    Raises:
        NvretError: no such treatment, a table of another method, or one that is not deep enough.
    """
    if treatment is not None and treatment not in get_args(Treatment):
        known = ", ".join(get_args(Treatment))
        raise NvretError(f"no treatment {treatment!r}, expected one of {known}")
    facts = negatives.provenance(table)
    if facts["method"]["name"] != "naive":
        raise NvretError(f"a treatment of {facts['method']['name']!r}, expected naive negatives")
    rows = table.select([*audit.KEYS, "rank", "score"]).to_pandas()
    pair = rows.groupby(PAIR, sort=False).ngroup().to_numpy()
    order = np.lexsort((rows["rank"], pair))
    table, rows, pair = table.take(pa.array(order)), rows.iloc[order], pair[order]
    known = audit.known(table, hidden)
    first = rows.groupby(pair).cumcount().to_numpy() < num_negatives
    false, true = np.flatnonzero(first & known), np.flatnonzero(first & ~known)
    false = false[np.argsort(_bits(table, seed)[false], kind="stable")]
    scores = rows["score"].to_numpy(np.float64)
    if treatment == "placebo":
        lost = _nearest(false, true, scores, pair)
    else:
        lost = false[round(DOSES.get(treatment or "", 1.0) * len(false)) :]
    gone = np.isin(np.arange(len(rows)), lost)
    free = ~first & ~known
    needed = np.bincount(pair, gone)
    taken = free & (pd.Series(free).groupby(pair).cumsum().to_numpy() <= needed[pair])
    cut = np.bincount(pair) >= facts["num_negatives"]  # not by the end of the corpus
    if (short := cut & (np.bincount(pair, taken) < needed)).any():
        row = rows.iloc[int(np.argmax(pair == np.argmax(short)))]
        raise NvretError(
            f"{treatment}: too few candidates to replace negatives of query {row['query_id']!r} "
            f"with positive {row['positive_id']!r}, expected a table of `depth` rows a pair"
        )
    kept = first & ~gone | taken
    full = int((np.bincount(pair, kept) >= num_negatives).sum())
    pairs = int(pair.max(initial=-1)) + 1
    report = {
        "name": treatment or "naive",
        "hidden": len(false),
        "left": int((kept & known).sum()),
        "replaced": len(lost),
        "replaced_score": _mean(scores[lost]),
        "replacement_score": _mean(scores[taken]),
        "score_difference": _mean(scores[lost]) - _mean(scores[false]) if len(lost) else 0.0,
    }
    facts |= {
        "num_negatives": num_negatives,
        "pairs": pairs,
        "pairs_short": pairs - full,
        "pairs_empty": 0,
        "negatives_missing": pairs * num_negatives - int(kept.sum()),
        "treatment": report,
    }
    metadata = {"nvret": json.dumps(facts, sort_keys=True)}
    return table.filter(pa.array(kept)).replace_schema_metadata(metadata)


def _mean(scores: np.ndarray) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def _bits(table: pa.Table, seed: int) -> np.ndarray:
    """(rows,) a number for each (query, positive, negative) that looks random."""
    query, positive, negative = (table[name] for name in audit.KEYS)
    return pair_keys(pc.binary_join_element_wise(query, positive, "\n"), negative, seed)


def _nearest(
    wanted: np.ndarray, offered: np.ndarray, scores: np.ndarray, pair: np.ndarray
) -> np.ndarray:
    """For each wanted row an offered one of another pair, the nearest in score, none twice."""
    offered = offered[np.argsort(scores[offered], kind="stable")]
    left, values = offered.tolist(), scores[offered].tolist()
    chosen = []
    for row in wanted:
        at = bisect_left(values, scores[row])
        below, above = at - 1, at
        while below >= 0 and pair[left[below]] == pair[row]:
            below -= 1
        while above < len(left) and pair[left[above]] == pair[row]:
            above += 1
        places = [place for place in (below, above) if 0 <= place < len(left)]
        if not places:
            raise NvretError(
                f"placebo: {len(wanted)} hidden positives and {len(offered)} true negatives, "
                "expected as many of other pairs"
            )
        place = min(places, key=lambda place: abs(values[place] - scores[row]))
        chosen.append(left.pop(place))
        del values[place]
    return np.array(chosen, dtype=np.int64)


def report(tables: Mapping[str, pa.Table], hidden: pa.Table) -> pd.DataFrame:
    """What each arm trains on: how many hidden positives, how hard.

    Args:
        tables: negatives by arm; those of `treat` say what was replaced, others have no number.
        hidden: as in `treat`.
    Returns:
        a row an arm: negatives, hidden (among them), rate, ``share left`` (of naive mining's hidden
        positives), replaced, score difference (see `treat`), mean score, and hardness: the mean
        score of all negatives over that of their positives.
    """
    rows = []
    for arm, table in tables.items():
        facts = (negatives.provenance(table) if table.schema.metadata else {}).get("treatment", {})
        known = audit.known(table, hidden)
        score, positive = (pc.mean(table[name]).as_py() for name in ("score", "positive_score"))
        own = {"arm": arm, "negatives": len(table), "hidden": int(known.sum())}
        own |= {"rate": float(known.mean()), "replaced": facts.get("replaced")}
        own |= {"share left": facts["left"] / facts["hidden"] if facts.get("hidden") else None}
        own |= {"score difference": facts.get("score_difference")}
        rows.append(own | {"mean score": score, "hardness": score / positive})
    return pd.DataFrame(rows)
