"""Treatments of naive negatives: what is replaced, by what, and what stays."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret import methods, mining, negatives
from nvret.analysis import audit
from nvret.data import from_texts
from nvret.study import treatments
from nvret.utils.errors import NvretError

POSITIVE = "p"
FACTS = {"method": methods.NaiveTopK().record, "pairs_short": 99}


def naive(scores):
    """A table of naive negatives: query i has the passages i/0, i/1 … with these scores."""
    rows = [
        {"query_id": f"q{q}", "positive_id": POSITIVE, "negative_id": f"{q}/{place}",
         "rank": place + 1, "score": score, "positive_score": 1.0, "teacher": "t", "method": "m"}
        for q, falling in enumerate(scores)
        for place, score in enumerate(falling)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, negatives.SCHEMA)
    return told(table, num_negatives=max(map(len, scores)))


def told(table, **more):
    return table.replace_schema_metadata({"nvret": json.dumps(FACTS | more)})


def labels(places):
    """Hidden positives: (query, place) of the table above."""
    places = list(places)
    ids = {"query_id": [f"q{q}" for q, _ in places], "corpus_id": [f"{q}/{p}" for q, p in places]}
    return pa.table(ids, pa.schema([("query_id", pa.string()), ("corpus_id", pa.string())]))


def treat(table, hidden, number, name, seed=0):
    return treatments.Candidates(table, hidden, number, seed).treat(name)


def facts(table):
    return negatives.provenance(table)["treatment"]


def keys(table):
    return list(zip(*(table[name].to_pylist() for name in audit.KEYS), strict=True))


@st.composite
def mined(draw):
    """K, and a table with hidden positives that is as deep as ``depth`` asks for.

    Half of the queries have none, so that there are as many true negatives of other pairs.
    """
    number, queries = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    hidden = [
        (q, place)
        for q in range(queries // 2)
        for place in draw(st.sets(st.integers(0, number + 2)))
    ]
    deep = treatments.depth(labels(hidden), number) if hidden else 2 * number
    score = st.floats(-1, 1, width=32)
    scores = [
        sorted(draw(st.lists(score, min_size=deep, max_size=deep)), reverse=True)
        for _ in range(queries)
    ]
    return number, naive(scores), labels(hidden)


@examples(100)
@given(mined(), st.integers(0, 3))
def test_what_is_replaced_and_by_what(case, seed):
    number, table, hidden = case
    plain = treat(table, hidden, number, None, seed)
    assert keys(plain) == [key for key, rank in zip(keys(table), table["rank"].to_pylist(),
                                                    strict=True) if rank <= number]  # fmt: skip
    known = audit.known(plain, hidden)
    false = {key for key, one in zip(keys(plain), known, strict=True) if one}
    true = set(keys(plain)) - false
    everything = dict(zip(keys(table), table["rank"].to_pylist(), strict=True))
    wrong = {key for key, one in zip(everything, audit.known(table, hidden), strict=True) if one}
    left, out = {}, {}
    for name in ("oracle", "dose-25", "dose-50", "placebo"):
        treated = treat(table, hidden, number, name, seed)
        found = keys(treated)
        assert len(set(found)) == len(found) == len(plain)
        assert Counter(key[:2] for key in found) == Counter(key[:2] for key in keys(plain))
        ranks = treated["rank"].to_numpy()
        same_pair = [a[:2] == b[:2] for a, b in itertools.pairwise(found)]
        assert (np.diff(ranks)[same_pair] > 0).all()
        left[name], out[name] = wrong & set(found), set(keys(plain)) - set(found)
        new = set(found) - set(keys(plain))
        assert not new & wrong
        for key in new:  # the pair's first ones that are no hidden positives
            skipped = [other for other, rank in everything.items() if other[:2] == key[:2]
                       and number < rank < everything[key] and other not in found]  # fmt: skip
            assert set(skipped) <= wrong
        report = facts(treated)
        assert report["hidden"] == len(false)
        assert report["replaced"] == len(out[name]) == len(new)
        assert report["left"] == len(left[name])
        assert negatives.provenance(treated)["pairs_short"] == 0
    assert out["oracle"] == false
    assert left["oracle"] == set()
    assert left["dose-25"] <= left["dose-50"] <= false
    assert out["dose-25"] <= false
    assert [len(left[name]) for name in ("dose-25", "dose-50")] == [
        round(share * len(false)) for share in (0.25, 0.5)
    ]
    assert left["placebo"] == false
    assert out["placebo"] <= true
    assert len(out["placebo"]) == len(false)


@examples(100)
@given(mined(), st.integers(0, 3))
def test_the_placebo_need_not_look_at_all_others(case, seed):
    number, table, hidden = case
    found = []
    for near in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(treatments, "NEAR", near)
            found.append(treat(table, hidden, number, "placebo", seed))
    assert found[0].equals(found[1], check_metadata=True)


def test_the_placebo_takes_the_nearest_scores_of_other_pairs():
    table = naive([[0.9, 0.895, 0.5, 0.4, 0.3], [0.91, 0.6, 0.2, 0.1, 0.0], [0.7, 0.4, 0, -1, -2]])
    hidden = labels([(0, 0), (2, 0)])
    placebo = treat(table, hidden, 2, "placebo")
    gone = set(keys(treat(table, hidden, 2, None))) - set(keys(placebo))
    # 0.895 is the nearest to 0.9, but of the same pair; then 0.91; 0.6 is the nearest to 0.7
    assert gone == {("q1", "p", "1/0"), ("q1", "p", "1/1")}
    assert facts(placebo)["score_difference"] == pytest.approx((0.91 + 0.6 - 0.9 - 0.7) / 2)
    # 0.9 and 0.7 would fall to 0.5 and 0.0; 0.91 and 0.6 fall to 0.2 and 0.1
    assert facts(placebo)["fall_difference"] == pytest.approx((1.51 - 0.3 - 1.6 + 0.5) / 2)
    assert placebo["rank"].to_pylist() == [1, 2, 3, 4, 1, 2]


def test_the_placebo_falls_as_far_as_the_oracle():
    """Of two equal scores it takes the one whose next candidate is as low."""
    table = naive([[0.9, 0.6, 0.5, 0.1, 0], [0.9, 0.89, 0.88, 0.1, 0], [0.9, 0.6, 0.5, 0.1, 0]])
    placebo = treat(table, labels([(0, 0)]), 2, "placebo")
    gone = set(keys(treat(table, labels([(0, 0)]), 2, None))) - set(keys(placebo))
    assert gone == {("q2", "p", "2/0")}
    assert facts(placebo)["score_difference"] == facts(placebo)["fall_difference"] == 0


def test_the_seed_chooses_the_dose_and_an_order_of_rows_does_not():
    table = naive([[0.9, 0.8, 0.7, 0.6, 0.5]] * 40)
    hidden = labels((q, 0) for q in range(40))
    halves = [treat(table, hidden, 2, "dose-50", seed) for seed in range(3)]
    assert len({frozenset(keys(half)) for half in halves}) == 3
    order = np.random.default_rng(0).permutation(table.num_rows)
    few = labels((q, 0) for q in range(15))
    for name, part in (("dose-50", hidden), ("placebo", few)):
        whole = treat(table, part, 2, name)
        shuffled = treat(table.take(order), part, 2, name)
        assert set(keys(shuffled)) == set(keys(whole))
        assert facts(shuffled) == facts(whole)


def test_what_cannot_be_treated_is_named():
    table, hidden = naive([[0.9, 0.8], [0.7, 0.6]]), labels([(0, 0), (1, 1)])
    with pytest.raises(NvretError, match="treatment is 'cure', expected one of oracle, placebo"):
        treat(table, hidden, 2, "cure")
    with pytest.raises(NvretError, match=r"oracle: too few candidates .*'q0' with positive 'p'"):
        treat(table, hidden, 2, "oracle")
    with pytest.raises(NvretError, match="a treatment of 'abs', expected naive negatives"):
        treat(told(table, method=methods.TopKAbs().record), hidden, 1, "oracle")


def test_what_the_corpus_does_not_hold_is_counted():
    table, hidden = naive([[0.9, 0.8, 0.7], [0.7, 0.6]]), labels([(0, 0), (1, 1)])
    treated = treat(table, hidden, 2, "oracle")
    assert [key[2] for key in keys(treated)] == ["0/1", "0/2", "1/0"]
    counts = negatives.provenance(treated)
    assert (counts["pairs"], counts["pairs_short"], counts["negatives_missing"]) == (2, 1, 1)


def test_a_mined_table():
    """A corpus of twins, one of each hidden: as deep as ``depth`` is enough."""
    texts = [f"word{i // 2} again word{i // 2} variant {'ab'[i % 2]} {i}" for i in range(40)]
    queries = [f"word{i} variant" for i in range(20)]
    whole = from_texts("twins", texts, queries, [[2 * i, 2 * i + 1] for i in range(20)])
    hidden = audit.hide(whole)
    deep = treatments.depth(hidden.pairs, 4)
    assert deep == 9
    table, plain = (
        mining.mine(hidden.dataset, "bm25", mining.NaiveTopK(), number, near_duplicates=None,
                    progress=False)
        for number in (deep, 4)
    )  # fmt: skip
    arms = {
        name: treat(table, hidden.pairs, 4, name) for name in (None, "oracle", "placebo", "dose-50")
    }
    assert arms[None].equals(plain)  # mined deeper, the first are the same
    report = treatments.report(arms | {"mined": plain}, hidden.pairs).set_index("arm")
    assert report["hidden"].tolist() == [20, 0, 20, 10, 20]
    assert report["share left"].tolist()[:4] == [1, 0, 1, 0.5]
    assert report["replaced"].tolist()[:4] == [0, 20, 20, 10]
    assert report["replaced"].isna().tolist() == [False] * 4 + [True]
    assert report.loc["oracle", "hardness"] < report.loc["dose-50", "hardness"]
    assert report.loc["dose-50", "hardness"] < report.loc["mined", "hardness"]
