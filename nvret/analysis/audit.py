"""How many mined negatives are positives? Hide labels that are known, and count what is mined.

A hidden label that a method takes for a negative is a *known* false negative. Nobody has judged all
passages, so that the rates are lower bounds; but no rule can see the hidden labels, so that they
compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret.analysis.statistics import Interval, rate
from nvret.data import RetrievalDataset
from nvret.sampling import pair_keys
from nvret.teachers import Scorer
from nvret.utils.errors import NvretError
from nvret.utils.store import hashed

KEYS = ["query_id", "positive_id", "negative_id"]
LABEL, MINED = ["query_id", "corpus_id"], ["query_id", "negative_id"]
SORTED = [(name, "ascending") for name in LABEL]
SEVERAL = 0.1  # share of queries with several positives from which a set can be audited by them


class Hidden(NamedTuple):
    """Labels that mining does not see, and the data set that it sees."""

    dataset: RetrievalDataset  # its queries have a hidden positive each
    pairs: pa.Table  # query_id, corpus_id of the positives that mining does not see
    source: Literal["labelled", "derived"]  # by people, or from shared wording


def hide(dataset: RetrievalDataset, seed: int = 0) -> Hidden:
    """Keep one positive of each query that has several, as if the labeller had stopped there.

    The others are hidden; queries with one positive are left out, and passages none. Which one is
    kept depends on the ids and the seed, not on the order of any rows.

    Raises:
        NvretError: no query has several positives.

    >>> from nvret.data import from_texts
    >>> hidden = hide(from_texts("toy", ["a", "b", "c"], ["x?", "y?"], [[0, 1], [2]]))
    >>> len(hidden.dataset.queries), len(hidden.dataset.pairs[0]), len(hidden.pairs)
    (1, 1, 1)
    """
    every, queries = pairs_of(dataset, *dataset.pairs), dataset.pairs[0]
    order = np.lexsort((pair_keys(*every.columns, seed), queries))
    pairs = every.take(order[pd.Series(queries[order]).duplicated()]).sort_by(SORTED)
    if not pairs.num_rows:
        raise NvretError(f"{dataset.name}: no query has several positives, so none can be hidden")
    part = dataset.select(pc.unique(pairs["query_id"]).to_pylist())
    seen = _without(part.qrels, pairs)
    seen = RetrievalDataset(f"{dataset.name}-hidden", part.corpus, part.queries, seen)
    return Hidden(seen, pairs, "labelled")


def cluster_labels(dataset: RetrievalDataset) -> Hidden:
    """Derived labels: the other passages of a positive's near-duplicate cluster count as hidden.

    No person has judged them: passages that share much of their wording (other excerpts of a page,
    other versions of it) most likely answer the same question, not surely. All labelled positives
    are kept; queries whose positives stand alone in their clusters are left out.

    Raises:
        NvretError: the corpus has no column ``cluster``, or no cluster of several passages.
    """
    if "cluster" not in dataset.corpus.column_names:
        raise NvretError(
            f"{dataset.name}: corpus has no column 'cluster', see near_duplicates.clusters"
        )
    cluster = dataset.corpus["cluster"].to_numpy()
    queries, passages = dataset.pairs
    labelled = pd.DataFrame({"query": queries, "cluster": cluster[passages]}).drop_duplicates()
    members = pd.DataFrame({"cluster": cluster, "passage": np.arange(len(cluster))})
    mates = labelled.merge(members, on="cluster")[["query", "passage"]].to_numpy()
    pairs = _without(pairs_of(dataset, *mates.T), pairs_of(dataset, *dataset.pairs))
    if not pairs.num_rows:
        raise NvretError(f"{dataset.name}: every positive is alone in its cluster")
    part = dataset.select(pc.unique(pairs["query_id"]).to_pylist(), name=f"{dataset.name}-clusters")
    return Hidden(part, pairs, "derived")


def unseen(dataset: RetrievalDataset, judgements: pa.Table) -> Hidden:
    """The positives of further judgements (query_id, corpus_id, score) that the data set lacks.

    Raises:
        NvretError: they name an unknown id, or hold no relevant pair that is new.

    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> more = pa.table({"query_id": ["q0"], "corpus_id": ["p1"], "score": [1]})
    >>> unseen(toy, more).pairs.to_pylist()
    [{'query_id': 'q0', 'corpus_id': 'p1'}]
    """
    judged = RetrievalDataset("hidden labels", dataset.corpus, dataset.queries, judgements)
    pairs = _without(pairs_of(judged, *judged.pairs), pairs_of(dataset, *dataset.pairs))
    if not pairs.num_rows:
        raise NvretError(
            f"{dataset.name}: the hidden labels hold no relevant pair that mining did not see"
        )
    return Hidden(dataset.select(pc.unique(pairs["query_id"]).to_pylist()), pairs, "labelled")


def labels(
    dataset: RetrievalDataset, queries: int | None = None, passages: int | None = None
) -> Hidden:
    """`hide` where a tenth of the queries or more have several positives, else `cluster_labels`.

    Args:
        queries: so many of them, those whose ids hash lowest; None: all.
        passages: every relevant one, hidden or not, and others to make up this number; None: all.
    """
    several = np.mean([len(rows) > 1 for rows in dataset.positives])
    part, pairs, source = hide(dataset) if several >= SEVERAL else cluster_labels(dataset)
    ids = part.queries["id"]
    if queries is not None and queries < len(ids):
        ids = ids.take(np.sort(np.argsort(pair_keys(ids, ids, 0))[:queries]))
        pairs = pairs.filter(pc.is_in(pairs["query_id"], ids.combine_chunks()))
        part = part.select(ids.to_pylist())
    if passages is not None and passages < part.corpus.num_rows:
        corpus = part.corpus["id"].to_pylist()
        needed = {corpus[row] for row in part.pairs[1]} | set(pairs["corpus_id"].to_pylist())
        others = sorted((name for name in corpus if name not in needed), key=hashed)
        kept = [*needed, *others[: max(0, passages - len(needed))]]
        part = part.select(ids.to_pylist(), corpus_ids=kept)
    return Hidden(part, pairs, source)


def pairs_of(dataset: RetrievalDataset, queries: np.ndarray, passages: np.ndarray) -> pa.Table:
    """Columns query_id and corpus_id of some rows."""
    ids = dataset.queries["id"].take(queries), dataset.corpus["id"].take(passages)
    return pa.table(ids, LABEL)


def _without(table: pa.Table, pairs: pa.Table) -> pa.Table:
    """The rows whose query and passage are none of these pairs, by their ids."""
    return table.filter(pa.array(~index_of(table).isin(index_of(pairs)))).sort_by(SORTED)


def index_of(table: pa.Table, columns: Sequence[str] = LABEL) -> pd.MultiIndex:
    """Some columns, to look up whole rows."""
    return pd.MultiIndex.from_frame(table.select(columns).to_pandas())


def known(table: pa.Table, hidden: Hidden | pa.Table) -> np.ndarray:
    """(rows,) bool: which negatives of a table are hidden positives, or their ``pairs``."""
    pairs = hidden.pairs if isinstance(hidden, Hidden) else hidden
    return index_of(table, MINED).isin(index_of(pairs))


def false_negatives(table: pa.Table, hidden: Hidden) -> pd.DataFrame:
    """How many negatives each (query, positive) pair has, and how many are hidden positives.

    Returns:
        columns query_id, positive_id, mined, false; a row for each pair, mined for or not.
    """
    dataset = hidden.dataset
    every = index_of(pa.table(dataset.pair_ids), KEYS[:2])
    rows = table.select(KEYS[:2]).to_pandas().assign(mined=1, false=known(table, hidden))
    counts = rows.groupby(KEYS[:2])[["mined", "false"]].sum()
    if len(strange := counts.index.difference(every)):
        raise NvretError(f"negatives of {tuple(strange[0])}, which is no pair of {dataset.name}")
    return counts.reindex(every, fill_value=0).astype(int).reset_index()


class FalseNegatives(NamedTuple):
    """How many of a table's negatives are known to be false."""

    queries: int  # that have a hidden positive
    negatives: int  # mined for these queries
    false: int  # of them, hidden positives
    rate: Interval  # false / negatives, over queries; a lower bound, as most are unjudged
    not_relevant: int  # negatives of any query that the hidden labels call not relevant


def summary(table: pa.Table, hidden: Hidden, judgements: pa.Table) -> FalseNegatives:
    """What the ``judgements`` of which `unseen` made ``hidden`` say of a table of negatives."""
    ids = hidden.dataset.queries["id"].combine_chunks()
    counts = false_negatives(table.filter(pc.is_in(table["query_id"], ids)), hidden)
    irrelevant = judgements.filter(pc.less_equal(judgements["score"], 0))
    not_relevant = known(table, hidden._replace(pairs=irrelevant)).sum()
    mined, false = counts[["mined", "false"]].sum().tolist()
    return FalseNegatives(len(ids), mined, false, rate(counts), int(not_relevant))


def by_rank(ranking: pa.Table, hidden: Hidden) -> pd.DataFrame:
    """The rate at each rank of one table of negatives: rank, negatives, rate, low, high."""
    rows = ranking.select(["query_id", "rank"]).to_pandas()
    rows = rows.assign(mined=1, false=known(ranking, hidden).astype(int))
    rates = [(rank, len(group), *rate(group)) for rank, group in rows.groupby("rank")]
    return pd.DataFrame(rates, columns=["rank", "negatives", "rate", "low", "high"])


def frontier(
    tables: Mapping[str, pa.Table], hidden: Hidden, ranking: pa.Table, naive: str
) -> pd.DataFrame:
    """For each method: how many of its negatives are false, and how hard the others are.

    Args:
        tables: negatives by method, mined for ``hidden.dataset``.
        ranking: naive negatives of the same teacher, many a pair: where each negative stands.
        naive: the method whose negatives the others are compared with.
    Returns:
        a row for each method. ``hardness``: mean score of the negatives that are not known to be
        false, over that of their positives. ``mean rank``: one beyond the ranking counts as its
        depth + 1. ``true kept``, ``false kept``: shares of the naive negatives of each kind that
        the method takes as well.
    """
    place = ranking.select([*KEYS, "rank"]).to_pandas().set_index(KEYS)["rank"]
    reference = index_of(tables[naive], KEYS)
    wrong = known(tables[naive], hidden)
    rows = []
    for method, table in tables.items():
        false, keys = known(table, hidden), index_of(table, KEYS)
        scores, positives = (table[c].to_numpy()[~false] for c in ("score", "positive_score"))
        hardness = scores.sum() / positives.sum() if len(scores) else np.nan
        rank = place.reindex(keys).fillna(place.max() + 1).mean()
        kept = pd.Series(reference.isin(keys))
        counts = len(table), int(false.sum()), *rate(false_negatives(table, hidden))
        rows.append((method, *counts, hardness, rank, kept[~wrong].mean(), kept[wrong].mean()))
    columns = ["method", "negatives", "false", "rate", "low", "high"]
    columns += ["hardness", "mean rank", "true kept", "false kept"]
    return pd.DataFrame(rows, columns=columns)


def against_labelled(hidden: Hidden, scorer: Scorer, exclude: Sequence[np.ndarray]) -> pd.DataFrame:
    """Each hidden positive beside each labelled one of its query, as the teacher scores them.

    If it is chance which one was labelled, half of the hidden ones outscore the labelled one, and
    a ceiling at the positive's own score halves the false negatives without knowing anything.

    Args:
        scorer: the teacher, prepared for ``hidden.dataset``.
        exclude: for each query the rows of the corpus that are never mined.
    Returns:
        columns query_id, positive_id, corpus_id, score, positive_score, and ``excluded``: whether
        no method can mine it.
    """
    dataset = hidden.dataset
    rows = hidden.pairs.to_pandas().merge(pa.table(dataset.pair_ids).to_pandas(), on="query_id")
    query = pd.Index(dataset.queries["id"].to_pylist()).get_indexer(rows["query_id"])
    corpus = pd.Index(dataset.corpus["id"].to_pylist())
    passage, positive = (corpus.get_indexer(rows[name]) for name in ("corpus_id", "positive_id"))
    out = [np.isin(row, exclude[asked]).item() for asked, row in zip(query, passage, strict=True)]
    scores, own = (scorer.pair_scores(query, some) for some in (passage, positive))
    return rows.assign(score=scores, positive_score=own, excluded=out)


def between(
    counts: Sequence[pd.DataFrame], hardness: Sequence[float], at: float
) -> pd.DataFrame | None:
    """The counts that a family of methods would have at a hardness between those of its members.

    Args:
        counts: of `false_negatives`, a table a member, with the same pairs.
        hardness: of each member, as `frontier` has it.
        at: the hardness that is asked for.
    Returns:
        a table like ``counts`` whose rate is the linear interpolation of its two neighbours' rates;
        None where no two members lie on both sides.

    >>> rows = pd.DataFrame({"query_id": ["a", "b"], "positive_id": ["p", "p"], "mined": [4, 4]})
    >>> found = between([rows.assign(false=[0, 2]), rows.assign(false=[4, 4])], [0.5, 0.9], 0.6)
    >>> rate(found).value  # 0.25 at 0.5, and 1 at 0.9
    0.4375
    """
    order = np.argsort(hardness, kind="stable")
    levels = np.asarray(hardness, float)[order]
    if np.isnan(at) or not (len(levels) > 1 and levels[0] <= at <= levels[-1]):
        return None
    right = int(np.searchsorted(levels, at, side="right").clip(1, len(levels) - 1))
    width = levels[right] - levels[right - 1]
    share = float((at - levels[right - 1]) / width) if width else 0.0
    low, high = (
        counts[place].set_index(KEYS[:2])[["mined", "false"]] for place in order[right - 1 :][:2]
    )
    mined = low["mined"].sum(), high["mined"].sum()
    size = (1 - share) * mined[0] + share * mined[1]
    low, high = (1 - share) * size / max(mined[0], 1) * low, share * size / max(mined[1], 1) * high
    return (low + high).reset_index()
