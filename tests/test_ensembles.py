"""Ensembles against a loop over pairs and slots."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret import data, ensembles
from nvret.analysis import overlap
from nvret.negatives import SCHEMA
from nvret.utils.errors import NvretError

PASSAGES = 12


def dataset(pairs):
    texts = [f"passage {i}" for i in range(PASSAGES)]
    questions = [f"question {i}" for i in range(pairs)]
    return data.from_texts("toy", texts, questions, [[i] for i in range(pairs)])


def table(teacher, ranked):
    """Negatives of query i with positive i, in this order."""
    rows = [
        {"query_id": f"q{q}", "positive_id": f"p{q}", "negative_id": f"p{passage}",
         "rank": rank, "score": 1 / rank, "positive_score": 1.0, "teacher": teacher, "method": "m"}
        for q, passages in enumerate(ranked)
        for rank, passage in enumerate(passages, 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


@st.composite
def rankings(draw):
    pairs, teachers = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    number = draw(st.integers(1, 4))
    ranked = []
    for _ in range(teachers):
        lists = []
        for q in range(pairs):
            order = draw(st.permutations([p for p in range(PASSAGES) if p != q]))
            lists.append(order[: draw(st.integers(0, 8))])
        ranked.append(lists)
    return pairs, number, ranked


def by_pair(found):
    rows = found.to_pandas()
    return {q: list(g.sort_values("rank")["negative_id"]) for q, g in rows.groupby("query_id")}


def by_hand(ranked, pairs, number, dedup):
    """Slot by slot: the next negative of the slot's teacher that is not there yet."""
    found = {}
    for q in range(pairs):
        places, taken = [0] * len(ranked), []
        for slot in range(number):
            teacher = slot % len(ranked)
            line = ranked[teacher][q]
            while dedup and places[teacher] < len(line) and line[places[teacher]] in taken:
                places[teacher] += 1
            if places[teacher] < len(line):
                taken.append(line[places[teacher]])
            places[teacher] += 1
        if taken:
            found[f"q{q}"] = [f"p{passage}" for passage in taken]
    return found


@given(case=rankings(), dedup=st.booleans())
@examples(60)
def test_intra_sample_is_the_loop(case, dedup):
    pairs, number, ranked = case
    tables = [table(f"t{t}", lists) for t, lists in enumerate(ranked)]
    found = ensembles.intra_sample(dataset(pairs), tables, number, dedup=dedup)
    assert by_pair(found) == by_hand(ranked, pairs, number, dedup)
    if dedup:
        assert all(len(set(ids)) == len(ids) for ids in by_pair(found).values())


@given(case=rankings(), seed=st.integers(0, 5))
@examples(60)
def test_cross_sample_takes_a_pair_from_one_teacher(case, seed):
    pairs, number, ranked = case
    tables = [table(f"t{t}", lists) for t, lists in enumerate(ranked)]
    found = ensembles.cross_sample(dataset(pairs), tables, number, seed).to_pandas()
    for q, rows in found.groupby("query_id"):
        (teacher,) = set(rows["teacher"])
        line = ranked[int(teacher[1:])][int(q[1:])][:number]
        assert list(rows["negative_id"]) == [f"p{passage}" for passage in line]


def test_cross_sample_draws_every_teacher_alike_and_by_the_pair_alone():
    pairs = 10
    tables = [table(f"t{t}", [[(q + 1 + t) % PASSAGES] for q in range(pairs)]) for t in range(3)]
    drawn = [ensembles.cross_sample(dataset(pairs), tables, 1, s).to_pandas() for s in range(300)]
    counts = np.unique(np.concatenate([d["teacher"] for d in drawn]), return_counts=True)[1]
    assert (np.abs(counts / counts.sum() - 1 / 3) < 0.03).all()
    fewer = [table(f"t{t}", [[(q + 1 + t) % PASSAGES] for q in range(5)]) for t in range(3)]
    same = ensembles.cross_sample(dataset(5), fewer, 1, 7).to_pandas()["teacher"]
    assert list(same) == list(drawn[7]["teacher"][:5])


def test_jaccard_by_hand():
    one, two = table("a", [[1, 2, 3, 4], [2]]), table("b", [[3, 4, 5, 6], [2]])
    assert overlap.jaccard([one, two])[0, 1] == pytest.approx((2 / 6 + 1) / 2)
    assert overlap.jaccard([one, two], depth=2)[0, 1] == pytest.approx((0 + 1) / 2)
    assert overlap.jaccard([one, one]).tolist() == [[1, 1], [1, 1]]


def test_one_teacher_is_no_ensemble():
    with pytest.raises(NvretError, match="an ensemble of 1 teachers"):
        ensembles.cross_sample(dataset(1), [table("a", [[1]])], 1)
