"""One ranking of some pairs, and what each parameter of a rule's family would take from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import methods
from nvret.analysis import audit
from nvret.analysis.judges import shares
from nvret.data import RetrievalDataset
from nvret.sampling import pair_keys
from nvret.teachers import Scorer
from nvret.utils.errors import check_choice

if TYPE_CHECKING:
    import scipy.sparse as sp

FAMILIES = {"perc-pos": "perc", "margin-pos": "margin", "abs": "threshold", "shifted": "n"}
DEPTH = 512  # ranks of a query that are looked at
STEPS = 51  # parameters that are tried
BINS = np.linspace(0, 1, 101)  # distances from the positive, in mean positive scores


@dataclass(frozen=True)
class Ladder:
    """What each parameter of a family takes, from the loosest to the tightest.

    Attributes:
        family: name of the method.
        parameters: (G,).
        dataset: that was ranked.
        pair: (U,) of each candidate that any parameter takes: its pair.
        query, positive, passage: (U,) rows of the data set.
        rank: (U,) among the candidates that are allowed at all.
        share: (U,) its score as a share of the positive's; see `judges.shares`.
        taken: (G, U) bool, sparse: which of them each parameter takes.
        gap: (U,) how far below its positive it scores, in mean positive scores.
        above: (P, bins) how many candidates of each pair stand above the positive, by distance.
        below: likewise, below it.
        pairs: P.
        wanted: negatives of each pair.
    """

    family: str
    parameters: np.ndarray
    dataset: RetrievalDataset
    pair: np.ndarray
    query: np.ndarray
    positive: np.ndarray
    passage: np.ndarray
    rank: np.ndarray
    share: np.ndarray
    gap: np.ndarray
    taken: sp.csr_matrix
    above: np.ndarray
    below: np.ndarray
    pairs: int
    wanted: int

    def rates(self, false: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(G,) share of each parameter's negatives that is false; 0 where there is none.

        Args:
            false: (U,) probabilities.
            weights: (U,) of the candidates; None: 1.
        """
        weights = np.ones(len(false)) if weights is None else weights
        return self.taken @ (weights * false) / np.maximum(self.taken @ weights, 1)


def build(
    dataset: RetrievalDataset,
    scorer: Scorer,
    family: str,
    num_negatives: int,
    exclude: Sequence[np.ndarray],
    *,
    pairs: int = 5000,
    progress: bool = True,
) -> Ladder:
    """Rank the candidates of some pairs once, and see what each parameter would take.

    Args:
        family: "perc-pos", "margin-pos", "abs" or "shifted".
        exclude: as of `nvret.mining.exclusions`.
        pairs: so many of them, those whose ids hash lowest.
    """
    import scipy.sparse as sp

    check_choice("family", family, list(FAMILIES))
    keys = pair_keys(*dataset.pair_ids.values(), 0)
    chosen = np.sort(np.argsort(keys, kind="stable")[:pairs])
    queries, positives = (rows[chosen] for rows in dataset.pairs)
    own = scorer.pair_scores(queries, positives).astype(np.float64)
    depth = min(DEPTH, dataset.corpus.num_rows)
    excluded = [exclude[row] for row in queries]
    found = scorer.top_k(queries, depth, None, excluded, progress=progress)
    ids, scores = found.ids.numpy(), found.scores.numpy().astype(np.float64)
    there = ids >= 0
    relative = np.where(there, shares(np.where(there, scores, 0), own[:, None]), -np.inf)
    gaps = (own[:, None] - scores) / np.abs(own).mean()  # inf where there is none
    parameters = _grid(family, own, scores[there])
    places = np.stack([
        _taken(method_of(family, parameter), scores, own, num_negatives)
        for parameter in parameters
    ])  # fmt: skip
    used, columns = np.unique(places[places >= 0], return_inverse=True)
    ends = np.append(0, (places >= 0).sum((1, 2)).cumsum())
    shape = len(parameters), len(used)
    pair, place = used // depth, used % depth
    return Ladder(
        family=family,
        parameters=parameters,
        dataset=dataset,
        pair=pair,
        query=queries[pair],
        positive=positives[pair],
        passage=ids[pair, place],
        rank=place + 1,
        share=relative[pair, place],
        gap=gaps[pair, place],
        taken=sp.csr_matrix((np.ones(len(columns)), columns, ends), shape=shape),
        above=_distances(-gaps),
        below=_distances(gaps),
        pairs=len(queries),
        wanted=num_negatives,
    )


def _grid(family: str, own: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(G,) parameters, the loosest first."""
    if family == "perc-pos":
        return np.arange(100, 49, -1) / 100
    if family == "shifted":
        return np.arange(STEPS)
    spread = float(np.abs(own).mean()) / 100  # one per cent of a positive's score
    if family == "margin-pos":
        return np.array([float(f"{spread * step:.3g}") for step in range(STEPS)])
    high, low = np.quantile(own, 0.99), np.quantile(own, 0.99) - 60 * spread
    return np.array([float(f"{value:.4g}") for value in np.linspace(high, low, STEPS)])


def method_of(family: str, parameter: float) -> methods.Method:
    """The method of a family with this parameter."""
    return methods.BY_NAME[family](int(parameter) if family == "shifted" else float(parameter))


def _taken(method: methods.Method, scores: np.ndarray, own: np.ndarray, num: int) -> np.ndarray:
    """(P, num) places in the flat ranking of what a method takes, -1 where there is none."""
    depth = scores.shape[1]
    first = (scores >= method.ceiling(own.astype(np.float32), safe=True)[:, None]).sum(1)
    columns = first[:, None] + method.skip + np.arange(num)
    inside = columns < depth
    columns = np.where(inside, columns, 0)
    valid = inside & np.isfinite(np.take_along_axis(scores, columns, 1))
    return np.where(valid, np.arange(len(scores))[:, None] * depth + columns, -1)


def _distances(gaps: np.ndarray) -> np.ndarray:
    """(P, bins) how many candidates of each pair lie at each distance from 0 to 1."""
    rows, columns = np.nonzero((gaps >= 0) & (gaps < 1))
    bins = np.searchsorted(BINS, gaps[rows, columns], "right") - 1
    counts = np.zeros((len(gaps), len(BINS) - 1))
    np.add.at(counts, (rows, bins), 1)
    return counts


def names_of(steps: Ladder) -> pd.MultiIndex:
    """(U,) query_id and corpus_id of the candidates."""
    return audit.index_of(audit.pairs_of(steps.dataset, steps.query, steps.passage))


def is_one_of(steps: Ladder, pairs: pa.Table) -> np.ndarray:
    """(U,) bool: whether a candidate is one of these pairs, query_id and corpus_id."""
    return names_of(steps).isin(audit.index_of(pairs))
