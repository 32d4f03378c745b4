"""Train, dev and test parts that do not leak into each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from nvret.data import RetrievalDataset
from nvret.study import mixtures
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import components, near_duplicate_pairs, normalise
from nvret.utils.store import hashed


class Split(NamedTuple):
    train: RetrievalDataset
    dev: RetrievalDataset
    test: RetrievalDataset


def split(
    dataset: RetrievalDataset,
    *,
    dev: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    corpus: Literal["full", "own"] = "full",
) -> Split:
    """Divide the queries so that nothing about a test passage can be learnt from the train part.

    Queries that share a relevant passage, or whose passages are near-duplicates (the corpus column
    ``cluster``), stay together. Where such a group goes depends on its ids and the seed alone, not
    on the order of rows or on other groups, so the shares of queries are met approximately.

    The train corpus is every passage outside the groups of dev and test: no held-out passage is
    ever seen in training, not even as a negative.

    Args:
        dev, test: shares of the groups.
        corpus: what dev and test search in: "full", all passages, as in BEIR; or "own", the
            passages of their own groups, which is smaller and easier.
    """
    if min(dev, test) < 0 or dev + test >= 1:
        raise NvretError(f"dev={dev} and test={test}: expected shares that leave some for training")
    if "cluster" not in dataset.corpus.column_names:
        raise NvretError(
            f"{dataset.name}: the corpus has no column 'cluster', expected the labels of "
            "nvret.utils.near_duplicates.clusters"
        )
    group = _groups(dataset)
    ids = np.array(dataset.corpus["id"].to_pylist(), dtype=object)
    order = np.argsort(ids, kind="stable")
    _, first = np.unique(group[order], return_index=True)
    keys = [hashed(f"{seed}:{ids[order[row]]}")[:7] for row in first]
    place = np.array([int.from_bytes(key, "big") / 2**56 for key in keys])  # in [0, 1)
    part = np.where(place < test, 2, np.where(place < test + dev, 1, 0))[group]
    queries, passages = dataset.pairs
    query_part = np.full(len(dataset.queries), -1)
    query_part[queries] = part[passages]
    held_out = np.isin(group, group[passages[part[passages] > 0]])
    query_ids = np.array(dataset.queries["id"].to_pylist(), dtype=object)
    parts = []
    for index, name in enumerate(Split._fields):
        own = ids[held_out & (part == index)] if corpus == "own" else None
        inside = own if index > 0 else ids[~held_out]
        chosen = query_ids[query_part == index]
        if not len(chosen):
            raise NvretError(f"{dataset.name}: no query falls into {name}; the set is too small")
        parts.append(dataset.select(chosen, corpus_ids=inside, name=f"{dataset.name}-{name}"))
    return Split(*parts)


def with_corpus(
    part: RetrievalDataset,
    whole: RetrievalDataset | None = None,
    others: Mapping[str, RetrievalDataset] | None = None,
    *,
    passages: int | None = None,
    name: str | None = None,
) -> RetrievalDataset:
    """The questions of a held-out part, with more passages to search in.

    Ids of the part's own set stay as they are, so that questions and judgements do not change.

    Args:
        part: of ``split`` with ``corpus="own"``.
        whole: the set that was split; its passages are added, those seen in training among them.
        others: sets by name whose passages are added under the ids ``name/id``. None of them is in
            a near-duplicate cluster with another.
        passages: at most so many: all of the part itself, then those whose ids hash lowest, so that
            smaller corpora are parts of larger ones.
        name: of the result.
    """
    tables = [(whole or part).corpus]
    label = int(np.max(tables[0]["cluster"].to_numpy())) + 1
    for prefix, other in (others or {}).items():
        added = mixtures.prefixed(other.corpus.select(mixtures.COLUMNS["corpus"]), prefix)
        labels = np.arange(label, label + added.num_rows, dtype=np.int32)
        tables.append(added.append_column("cluster", pa.array(labels)))
        label += added.num_rows
    larger = replace(part, name=name or part.name, corpus=pa.concat_tables(tables))
    return mixtures.sample_passages(larger, passages, part.corpus["id"].to_pylist())


def _groups(dataset: RetrievalDataset) -> np.ndarray:
    """(passages,) label of each passage's group: joined by a cluster or by a query."""
    queries, passages = dataset.pairs
    count = len(dataset.corpus)
    _, cluster = np.unique(dataset.corpus["cluster"].to_numpy(), return_inverse=True)
    i = np.concatenate([np.arange(count), passages])
    j = np.concatenate([count + cluster, count + cluster.max() + 1 + queries])
    return components(int(j.max()) + 1, i, j)[:count]


class Leaks(NamedTuple):
    """(test id, train id) of each near-duplicate pair of passages and equal pair of questions."""

    passages: list[tuple[str, str]]
    queries: list[tuple[str, str]]


def leaks(train: RetrievalDataset, test: RetrievalDataset, *, threshold: float = 0.5) -> Leaks:
    """What is tested and can be learnt in training.

    That is a relevant passage of ``test``, or a near-duplicate of it, in the corpus of ``train``,
    and a question of ``test`` that is a question of ``train``.

    Args:
        threshold: share of the shorter text's word trigrams that make two passages near-duplicates.
    """
    relevant = np.unique(test.pairs[1])
    tested = test.corpus.take(pa.array(relevant))
    texts = tested["text"].to_pylist(), train.corpus["text"].to_pylist()
    i, j, _ = near_duplicate_pairs(*texts, threshold=threshold, measure="overlap")
    test_ids, train_ids = tested["id"].take(pa.array(i)), train.corpus["id"].take(pa.array(j))
    passages = list(zip(test_ids.to_pylist(), train_ids.to_pylist(), strict=True))
    asked = defaultdict(list)
    for text, query in zip(train.query_texts, train.queries["id"].to_pylist(), strict=True):
        asked[normalise(text)].append(query)
    words = zip(test.queries["id"].to_pylist(), map(normalise, test.query_texts), strict=True)
    queries = [(test_id, train_id) for test_id, text in words for train_id in asked.get(text, ())]
    return Leaks(passages, queries)


def check_leaks(train: RetrievalDataset, test: RetrievalDataset, *, threshold: float = 0.5) -> None:
    """Stop if `leaks` finds something that is tested and can be learnt in training.

    Raises:
        NvretError: the message counts the leaks and names the first ids.
    """
    lines = []
    words = "test passages stand in the train corpus", "test questions are train questions"
    for what, pairs in zip(words, leaks(train, test, threshold=threshold), strict=True):
        if pairs:
            ids = ", ".join(f"{test_id} ~ {train_id}" for test_id, train_id in pairs[:5])
            lines.append(f"{len(pairs)} {what} ({ids}{', …' if len(pairs) > 5 else ''})")
    if lines:
        raise NvretError(f"{train.name} leaks into {test.name}: " + "; ".join(lines))


def without(train: RetrievalDataset, passages: set[str], queries: set[str]) -> RetrievalDataset:
    """``train`` less these passages, the queries that they answer, and these queries."""
    asked, answers = (ids.to_pylist() for ids in train.pair_ids.values())
    lost = {query for query, passage in zip(asked, answers, strict=True) if passage in passages}
    return train.select(
        set(train.queries["id"].to_pylist()) - lost - queries,
        corpus_ids=set(train.corpus["id"].to_pylist()) - passages,
    )
