"""Hidden labels: what is hidden, what is counted, and how sure the counts are."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.mining import MatrixTeacher
from nvret import mining
from nvret.analysis import audit, statistics
from nvret.data import RetrievalDataset, from_texts
from nvret.utils.errors import NvretError

POSITIVES = [[0, 1, 2], [3], [4, 5], [6, 7]]


def toy(clusters=None):
    dataset = from_texts("toy", [f"text {i} of {i}" for i in range(12)], list("wxyz"), POSITIVES)
    if clusters is None:
        return dataset
    corpus = dataset.corpus.append_column("cluster", pa.array(clusters, pa.int32()))
    return RetrievalDataset("toy", corpus, dataset.queries, dataset.qrels)


def pairs(table, second="corpus_id"):
    return set(zip(table["query_id"].to_pylist(), table[second].to_pylist(), strict=True))


def table(rows):
    """Negatives from (query, positive, negative), in rank order, with falling scores."""
    query, positive, negative = zip(*rows, strict=True)
    size = len(rows)
    return pa.table(
        {
            "query_id": query,
            "positive_id": positive,
            "negative_id": negative,
            "rank": pa.array(1 + np.arange(size) % 2, pa.int32()),
            "score": pa.array(np.linspace(0.9, 0.1, size), pa.float32()),
            "positive_score": pa.array(np.full(size, 0.8), pa.float32()),
        }
    )


@examples(20)
@given(st.integers(0, 50), st.randoms())
def test_one_positive_is_kept_whatever_the_order(seed, random):
    dataset = toy()
    hidden = audit.hide(dataset, seed)
    kept, lost = pairs(hidden.dataset.qrels), pairs(hidden.pairs)
    assert sorted(query for query, _ in kept) == ["q0", "q2", "q3"]
    assert not kept & lost
    assert kept | lost == {pair for pair in pairs(dataset.qrels) if pair[0] != "q1"}
    assert hidden.dataset.corpus.num_rows == 12
    assert hidden.source == "labelled"

    order = {part: list(range(getattr(dataset, part).num_rows)) for part in ("corpus", "qrels")}
    for rows in order.values():
        random.shuffle(rows)
    shuffled = RetrievalDataset(
        "x",
        dataset.corpus.take(order["corpus"]),
        dataset.queries,
        dataset.qrels.take(order["qrels"]),
    )
    again = audit.hide(shuffled, seed)
    assert pairs(again.pairs) == lost
    assert again.pairs.equals(hidden.pairs)


def test_the_seed_chooses_and_judgements_of_0_stay():
    dataset = toy()
    judged = pa.table({"query_id": ["q2"], "corpus_id": ["p9"], "score": pa.array([0], pa.int32())})
    dataset = RetrievalDataset(
        "toy", dataset.corpus, dataset.queries, pa.concat_tables([dataset.qrels, judged])
    )
    assert len({frozenset(pairs(audit.hide(dataset, seed).pairs)) for seed in range(20)}) > 3
    hidden = audit.hide(dataset)
    assert ("q2", "p9") in pairs(hidden.dataset.qrels)
    assert ("q2", "p9") not in pairs(hidden.pairs)
    with pytest.raises(NvretError, match="one: no query has several positives"):
        audit.hide(from_texts("one", ["a"], ["b"], [[0]]))


def test_cluster_mates_are_hidden_but_no_labelled_positive():
    #              w: 0, 1 and 2    x: 3     y: 4, 5   z: 6, 7
    hidden = audit.cluster_labels(toy([0, 0, 1, 2, 3, 4, 5, 6, 0, 2, 9, 9]))
    assert pairs(hidden.pairs) == {("q0", "p8"), ("q1", "p9")}
    assert hidden.source == "derived"
    assert [len(rows) for rows in hidden.dataset.positives] == [3, 1]
    with pytest.raises(NvretError, match="no column 'cluster'"):
        audit.cluster_labels(toy())
    with pytest.raises(NvretError, match="every positive is alone"):
        audit.cluster_labels(toy(range(12)))


def test_labels_chooses_the_way_and_samples_queries():
    assert audit.labels(toy()).source == "labelled"
    few = from_texts("few", list("abcdefghijklmno"), list("0123456789A"), [[i] for i in range(11)])
    corpus = few.corpus.append_column("cluster", pa.array([i // 2 for i in range(15)], pa.int32()))
    few = RetrievalDataset("few", corpus, few.queries, few.qrels)
    assert audit.labels(few).source == "derived"
    small, smaller = (audit.labels(toy(), number) for number in (2, 1))
    assert len(small.dataset.queries) == 2
    assert pairs(smaller.pairs) < pairs(small.pairs)  # the one is a part of the other
    assert {query for query, _ in pairs(small.pairs)} == set(
        small.dataset.queries["id"].to_pylist()
    )


def test_counts_of_every_pair():
    hidden = audit.cluster_labels(toy([0, 0, 1, 2, 3, 4, 5, 6, 0, 2, 9, 9]))
    mined = table([("q0", "p0", "p8"), ("q0", "p0", "p9"), ("q0", "p1", "p8"), ("q1", "p3", "p8")])
    assert audit.known(mined, hidden).tolist() == [True, False, True, False]
    counts = audit.false_negatives(mined, hidden).set_index(["query_id", "positive_id"])
    assert counts.loc[("q0", "p0")].tolist() == [2, 1]
    assert counts.loc[("q0", "p2")].tolist() == [0, 0]  # nothing was mined for it
    assert len(counts) == 4
    assert statistics.rate(counts.reset_index()).value == 0.5
    with pytest.raises(NvretError, match=r"negatives of \('q2', 'p4'\), which is no pair of toy"):
        audit.false_negatives(table([("q2", "p4", "p1")]), hidden)


def test_frontier():
    hidden = audit.cluster_labels(toy([0, 0, 1, 2, 3, 4, 5, 6, 0, 2, 9, 9]))
    rows = [("q0", "p0", "p8"), ("q0", "p0", "p9"), ("q1", "p3", "p9"), ("q1", "p3", "p1")]
    ranking = table(rows)
    tables = {"naive": ranking, "none": ranking.slice(0, 0), "late": ranking.slice(1, 1)}
    late = pa.concat_tables([tables["late"], table([("q1", "p3", "p11")])])
    found = audit.frontier(tables | {"late": late}, hidden, ranking, "naive").set_index("method")
    assert found.loc["naive", ["negatives", "false", "rate"]].tolist() == [4, 2, 0.5]
    # of the four scores .9, .63, .37, .1 the false ones are the first and the third
    assert found.loc["naive", "hardness"] == pytest.approx((0.9 + 0.1 - 0.8 / 3) / 1.6, abs=1e-6)
    assert found.loc["naive", ["mean rank", "true kept", "false kept"]].tolist() == [1.5, 1, 1]
    assert found.loc["late", ["mean rank", "true kept", "false kept"]].tolist() == [2.5, 0.5, 0]
    assert found.loc["none", "negatives"] == 0
    assert np.isnan(found.loc["none", ["rate", "hardness", "mean rank"]].astype(float)).all()
    by_rank = audit.by_rank(ranking, hidden)
    assert by_rank[["rank", "negatives", "rate"]].to_numpy().tolist() == [[1, 2, 1], [2, 2, 0]]


def test_each_hidden_positive_beside_each_labelled_one():
    hidden = audit.cluster_labels(toy([0, 0, 1, 2, 3, 4, 5, 6, 0, 2, 9, 9]))
    matrix = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    rows = audit.against_labelled(hidden, MatrixTeacher(matrix), [np.array([8]), np.array([0])])
    found = rows.sort_values(["query_id", "positive_id"])
    assert found[["query_id", "positive_id", "corpus_id"]].to_numpy().tolist() == [
        ["q0", "p0", "p8"], ["q0", "p1", "p8"], ["q0", "p2", "p8"], ["q1", "p3", "p9"],
    ]  # fmt: skip
    assert found["score"].tolist() == [8, 8, 8, 21]
    assert found["positive_score"].tolist() == [0, 1, 2, 15]
    assert found["excluded"].tolist() == [True] * 3 + [False]


@examples(30)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9), st.integers(0, 9)), min_size=2,
             max_size=5, unique_by=lambda row: round(row[0], 6)), st.floats(0, 1),
)  # fmt: skip
def test_a_rate_between_two_members_is_interpolated(members, at):
    levels = [level for level, *_ in members]
    counts = [
        pd.DataFrame({"query_id": ["a", "b"], "positive_id": ["p", "q"], "mined": [mined, 9],
                      "false": [min(false, mined), 3]})
        for _, mined, false in members
    ]  # fmt: skip
    found = audit.between(counts, levels, at)
    assert (found is None) == (not min(levels) <= at <= max(levels))
    if found is not None:
        order = np.argsort(levels)
        rates = np.array([statistics.rate(table).value for table in counts])
        expected = np.interp(at, np.array(levels)[order], rates[order])
        assert statistics.rate(found).value == pytest.approx(expected)
        assert statistics.reduction(found, counts[0]).low <= 1
    assert audit.between(counts[:1], levels[:1], levels[0]) is None
    assert audit.between(counts, levels, float("nan")) is None


def test_mined_for_real():
    """No rule sees the hidden labels: a hidden positive is mined like any other passage."""
    texts = [f"word{i // 2} again word{i // 2} variant {'ab'[i % 2]} {i}" for i in range(40)]
    queries = [f"word{i} word{i}" for i in range(20)]
    dataset = from_texts("twins", texts, queries, [[2 * i, 2 * i + 1] for i in range(20)])
    hidden = audit.hide(dataset)
    naive = mining.mine(hidden.dataset, "bm25", mining.NaiveTopK(), 4, progress=False)
    counts = audit.false_negatives(naive, hidden)
    assert counts["false"].tolist() == [1] * 20
    assert audit.by_rank(naive, hidden)["rate"].iloc[0] == 1


@pytest.mark.parametrize("number", [1, 8, 11, 12, 99, None])
def test_fewer_passages_leave_out_none_that_is_relevant(number):
    whole, cut = audit.labels(toy()), audit.labels(toy(), passages=number)
    ids = set(cut.dataset.corpus["id"].to_pylist())
    assert pairs(cut.pairs) == pairs(whole.pairs)
    assert pairs(cut.dataset.qrels) == pairs(whole.dataset.qrels)
    needed = {passage for _, passage in pairs(whole.pairs) | pairs(whole.dataset.qrels)}
    assert needed <= ids
    assert len(ids) == min(12, max(len(needed), number or 12))
