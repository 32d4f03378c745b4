"""What labels that mining did not see say of its negatives."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret.analysis import audit
from nvret.analysis.statistics import Interval
from nvret.data import RetrievalDataset
from nvret.utils.errors import NvretError


@dataclass(frozen=True)
class Hidden:
    """What labels that mining did not see say of the negatives.

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


def look(
    table: pa.Table, dataset: RetrievalDataset, labels: pa.Table
) -> tuple[set[tuple[int, int]], Hidden]:
    """(query, passage) rows of the hidden positives, and how many of them were mined.

    Args:
        table: negatives.
        dataset: what they were mined from.
        labels: columns query_id, corpus_id, score; those that the data set holds are no news.
    Raises:
        NvretError: the labels name an unknown id, or hold no relevant pair that is new.

    >>> from nvret import mining
    >>> from nvret.data import from_texts
    >>> toy = from_texts("toy", ["Paris is old", "Rome is old"], ["how old is Paris"], [[0]])
    >>> table = mining.mine(toy, "bm25", mining.NaiveTopK(), 1, progress=False)
    >>> more = pa.table({"query_id": ["q0"], "corpus_id": ["p1"], "score": [1]})
    >>> look(table, toy, more)[1].rate.value
    1.0
    """
    judged = RetrievalDataset("hidden labels", dataset.corpus, dataset.queries, labels)
    known = set(zip(*(part.tolist() for part in dataset.pairs), strict=True))
    pairs = sorted(set(zip(*(part.tolist() for part in judged.pairs), strict=True)) - known)
    if not pairs:
        raise NvretError(
            f"{dataset.name}: the hidden labels hold no relevant pair that mining did not see"
        )
    names = [dataset.queries["id"].to_pylist(), dataset.corpus["id"].to_pylist()]
    ids = [[names[side][pair[side]] for pair in pairs] for side in (0, 1)]
    queries = list(dict.fromkeys(ids[0]))
    lost = audit.Hidden(
        dataset.select(queries), pa.table({"query_id": ids[0], "corpus_id": ids[1]}), "labelled"
    )
    part = table.filter(pc.is_in(table["query_id"], pa.array(queries)))
    counted = audit.false_negatives(part, lost)
    zeros = labels.filter(pc.less_equal(labels["score"], 0))
    mined = table.select(["query_id", "negative_id"]).to_pandas()
    judgements = pd.MultiIndex.from_frame(zeros.select(["query_id", "corpus_id"]).to_pandas())
    return set(pairs), Hidden(
        len(queries),
        int(counted["mined"].sum()),
        int(counted["false"].sum()),
        audit.rate(counted),
        int(pd.MultiIndex.from_frame(mined).isin(judgements).sum()),
    )
