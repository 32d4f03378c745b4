"""How many mined negatives are positives? Hide labels that are known, and count what is mined.

Of a query with several labelled positives one is kept, as if the labeller had stopped there. A
hidden one that a method takes for a negative is a *known* false negative. Nobody has judged all
passages, so that the rates are lower bounds; but no rule can see the hidden labels, so that they
compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret.analysis.statistics import Interval, rate
from nvret.data import RetrievalDataset
from nvret.sampling import pair_keys
from nvret.utils.errors import NvretError
from nvret.utils.store import hashed

KEYS = ["query_id", "positive_id", "negative_id"]
SEVERAL = 0.1  # share of queries with several positives from which a set can be audited by them
MINED = ["query_id", "negative_id"]
_ORDER = [("query_id", "ascending"), ("corpus_id", "ascending")]


class Hidden(NamedTuple):
    """Labels that mining does not see, and the data set that it sees.

    Attributes:
        dataset: what mining sees; its queries have a hidden positive each.
        pairs: query_id, corpus_id of the positives that it does not see.
        source: "labelled" (by people) or "derived" (from shared wording).
    """

    dataset: RetrievalDataset
    pairs: pa.Table
    source: Literal["labelled", "derived"]


def hide(dataset: RetrievalDataset, seed: int = 0) -> Hidden:
    """Keep one positive of each query that has several; hide the others. Other queries are left
    out, and passages none.

    Which one is kept depends on the ids and the seed, not on the order of any rows.

    Raises:
        NvretError: no query has several positives.

    >>> from nvret.data import from_texts
    >>> hidden = hide(from_texts("toy", ["a", "b", "c"], ["x?", "y?"], [[0, 1], [2]]))
    >>> len(hidden.dataset.queries), len(hidden.dataset.pairs[0]), len(hidden.pairs)
    (1, 1, 1)
    """
    queries, passages = dataset.pairs
    query_ids = dataset.queries["id"].take(pa.array(queries))
    passage_ids = dataset.corpus["id"].take(pa.array(passages))
    order = np.lexsort((pair_keys(query_ids, passage_ids, seed), queries))
    first = np.r_[True, queries[order][1:] != queries[order][:-1]][: len(order)]
    lost = pa.array(np.sort(order[~first]))
    pairs = pa.table({"query_id": query_ids.take(lost), "corpus_id": passage_ids.take(lost)})
    if not pairs.num_rows:
        raise NvretError(f"{dataset.name}: no query has several positives, so none can be hidden")
    part = dataset.select(pc.unique(pairs["query_id"]).to_pylist())
    qrels = part.qrels.join(
        pairs.append_column("hidden", pa.array(np.ones(len(pairs), bool))),
        ["query_id", "corpus_id"],
    )
    qrels = qrels.filter(pc.is_null(qrels["hidden"])).sort_by(_ORDER)
    seen = RetrievalDataset(f"{dataset.name}-hidden", part.corpus, part.queries, qrels)
    return Hidden(seen, pairs.sort_by(_ORDER), "labelled")


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
    mates = labelled.merge(
        pd.DataFrame({"cluster": cluster, "passage": np.arange(len(cluster))}), on="cluster"
    )
    known = pd.MultiIndex.from_arrays([queries, passages])
    rows = mates[~pd.MultiIndex.from_frame(mates[["query", "passage"]]).isin(known)]
    if rows.empty:
        raise NvretError(f"{dataset.name}: every positive is alone in its cluster")
    pairs = pa.table(
        {
            "query_id": dataset.queries["id"].take(pa.array(rows["query"].to_numpy())),
            "corpus_id": dataset.corpus["id"].take(pa.array(rows["passage"].to_numpy())),
        }
    )
    part = dataset.select(pc.unique(pairs["query_id"]).to_pylist(), name=f"{dataset.name}-clusters")
    return Hidden(part, pairs.sort_by(_ORDER), "derived")


def unseen(dataset: RetrievalDataset, judgements: pa.Table) -> Hidden:
    """The positives that a second set of judgements holds and the data set does not.

    Args:
        judgements: columns query_id, corpus_id, score.
    Raises:
        NvretError: they name an unknown id, or hold no relevant pair that is new.

    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> more = pa.table({"query_id": ["q0"], "corpus_id": ["p1"], "score": [1]})
    >>> unseen(toy, more).pairs.to_pylist()
    [{'query_id': 'q0', 'corpus_id': 'p1'}]
    """
    judged = RetrievalDataset("hidden labels", dataset.corpus, dataset.queries, judgements)
    labelled, more = (
        set(zip(*(rows.tolist() for rows in part.pairs), strict=True)) for part in (dataset, judged)
    )
    pairs = sorted(more - labelled)
    if not pairs:
        raise NvretError(
            f"{dataset.name}: the hidden labels hold no relevant pair that mining did not see"
        )
    queries, passages = (pa.array(rows) for rows in zip(*pairs, strict=True))
    query_ids = dataset.queries["id"].take(queries)
    new = pa.table({"query_id": query_ids, "corpus_id": dataset.corpus["id"].take(passages)})
    return Hidden(dataset.select(pc.unique(query_ids).to_pylist()), new, "labelled")


def labels(
    dataset: RetrievalDataset,
    queries: int | None = None,
    passages: int | None = None,
    seed: int = 0,
) -> Hidden:
    """`hide` where a tenth of the queries or more have several positives, else `cluster_labels`.

    Args:
        queries: so many of them, those whose ids hash lowest; None: all.
        passages: every relevant one, hidden or not, and others to make up this number; None: all.
    """
    several = np.mean([len(rows) > 1 for rows in dataset.positives])
    hidden = hide(dataset, seed) if several >= SEVERAL else cluster_labels(dataset)
    return _cut_passages(_cut_queries(hidden, queries, seed), passages)


def _cut_queries(hidden: Hidden, queries: int | None, seed: int) -> Hidden:
    ids = hidden.dataset.queries["id"]
    if queries is None or queries >= len(ids):
        return hidden
    chosen = ids.take(pa.array(np.sort(np.argsort(pair_keys(ids, ids, seed))[:queries])))
    pairs = hidden.pairs.filter(pc.is_in(hidden.pairs["query_id"], chosen.combine_chunks()))
    return hidden._replace(dataset=hidden.dataset.select(chosen.to_pylist()), pairs=pairs)


def _cut_passages(hidden: Hidden, passages: int | None) -> Hidden:
    part = hidden.dataset
    if passages is None or passages >= part.corpus.num_rows:
        return hidden
    ids = part.corpus["id"].to_pylist()
    needed = {ids[row] for row in part.pairs[1]} | set(hidden.pairs["corpus_id"].to_pylist())
    others = sorted((name for name in ids if name not in needed), key=hashed)
    kept = [*needed, *others[: max(0, passages - len(needed))]]
    part = part.select(part.queries["id"].to_pylist(), corpus_ids=kept)
    return hidden._replace(dataset=part)


def known(table: pa.Table, hidden: Hidden) -> np.ndarray:
    """(rows,) bool: which negatives of a table are hidden positives."""
    return _index(table, MINED).isin(_index(hidden.pairs, ["query_id", "corpus_id"]))


def _index(table: pa.Table, columns: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table.select(columns).to_pandas())


def false_negatives(table: pa.Table, hidden: Hidden) -> pd.DataFrame:
    """For each (query, positive) pair that was mined for, how many negatives it has, and how many
    of them are hidden positives.

    Returns:
        columns query_id, positive_id, mined, false; pairs without any negative have 0 and 0.
    """
    dataset = hidden.dataset
    queries, passages = dataset.pairs
    ids = dataset.queries["id"].to_numpy()[queries], dataset.corpus["id"].to_numpy()[passages]
    every = pd.MultiIndex.from_arrays(ids, names=KEYS[:2])
    rows = table.select(KEYS[:2]).to_pandas().assign(mined=1, false=known(table, hidden))
    counts = rows.groupby(KEYS[:2])[["mined", "false"]].sum()
    if len(strange := counts.index.difference(every)):
        raise NvretError(f"negatives of {tuple(strange[0])}, which is no pair of {dataset.name}")
    return counts.reindex(every, fill_value=0).astype(int).reset_index()


class FalseNegatives(NamedTuple):
    """How many of a table's negatives are known to be false.

    Attributes:
        queries: of the data set that have a hidden positive.
        negatives: mined for these queries.
        false: of them, hidden positives.
        rate: false / negatives with a 95 % interval over queries: a lower bound of the true rate,
            as most negatives are unjudged.
        not_relevant: negatives of any query that the hidden labels judge and call not relevant.
    """

    queries: int
    negatives: int
    false: int
    rate: Interval
    not_relevant: int


def summary(table: pa.Table, hidden: Hidden, judgements: pa.Table) -> FalseNegatives:
    """What the ``judgements`` of which `unseen` made ``hidden`` say of a table of negatives."""
    ids = hidden.dataset.queries["id"].combine_chunks()
    counts = false_negatives(table.filter(pc.is_in(table["query_id"], ids)), hidden)
    irrelevant = judgements.filter(pc.less_equal(judgements["score"], 0))
    judged = _index(table, MINED).isin(_index(irrelevant, ["query_id", "corpus_id"]))
    mined, false = (int(counts[name].sum()) for name in ("mined", "false"))
    return FalseNegatives(len(ids), mined, false, rate(counts), int(judged.sum()))


def by_rank(ranking: pa.Table, hidden: Hidden) -> pd.DataFrame:
    """The rate at each rank of one table of negatives: rank, negatives, rate, low, high."""
    rows = ranking.select(["query_id", "rank"]).to_pandas()
    rows = rows.assign(mined=1, false=known(ranking, hidden).astype(int))
    rates = [(rank, len(group), *rate(group)) for rank, group in rows.groupby("rank", sort=True)]
    return pd.DataFrame(rates, columns=["rank", "negatives", "rate", "low", "high"])


def frontier(
    tables: Mapping[str, pa.Table], hidden: Hidden, ranking: pa.Table, naive: str
) -> pd.DataFrame:
    """For each method: how many of its negatives are false, and how hard the others are.

    Args:
        tables: negatives by method, mined for ``hidden.dataset``; see `nvret.mining.sweep`.
        ranking: naive negatives of the same teacher, many a pair: where each negative stands.
        naive: the method whose negatives the others are compared with.
    Returns:
        a row for each method. ``hardness`` is the mean score of the negatives that are not known
        to be false, over the mean score of their positives (a false one is always hard; it must
        not count for the method). ``mean rank`` counts a rank beyond the ranking's depth as
        that depth + 1. ``true kept`` and ``false kept`` are the shares of the naive negatives of
        each kind that the method takes as well.
    """
    place = ranking.select([*KEYS, "rank"]).to_pandas().set_index(KEYS)["rank"]
    reference = _index(tables[naive], KEYS)
    wrong = known(tables[naive], hidden)
    lines = []
    for method, table in tables.items():
        share, low, high = rate(false_negatives(table, hidden))
        false, keys = known(table, hidden), _index(table, KEYS)
        ranks = place.reindex(keys).fillna(place.max() + 1).to_numpy()
        scores, positives = (table[c].to_numpy()[~false] for c in ("score", "positive_score"))
        kept = reference.isin(keys)
        lines.append(
            {
                "method": method,
                "negatives": len(table),
                "false": int(false.sum()),
                "rate": share,
                "low": low,
                "high": high,
                "hardness": scores.sum() / positives.sum() if len(scores) else np.nan,
                "mean rank": ranks.mean() if len(ranks) else np.nan,
                "true kept": kept[~wrong].mean() if (~wrong).any() else np.nan,
                "false kept": kept[wrong].mean() if wrong.any() else np.nan,
            }
        )
    return pd.DataFrame(lines)
