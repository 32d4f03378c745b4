"""Mixtures of training sets keep their texts and their proportions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret import data
from nvret.study import mixtures
from nvret.utils.errors import NvretError

SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 400), min_size=1)


def toy(number, name="toy"):
    texts = [f"{name} passage number {i}" for i in range(number)]
    questions = [f"{name} question {i}" for i in range(number)]
    return data.from_texts(name, texts, questions, [[i] for i in range(number)])


@given(sizes=SIZES, total=st.integers(1, 2000), temperature=st.floats(0, 3))
def test_shares_add_up_and_no_set_gives_more_than_it_has(sizes, total, temperature):
    given_ = mixtures.shares(sizes, total, temperature)
    assert sum(given_.values()) == min(total, sum(sizes.values()))
    assert all(0 <= given_[name] <= sizes[name] for name in sizes)


@given(sizes=SIZES, total=st.integers(1, 2000))
def test_temperature_one_keeps_the_proportions(sizes, total):
    whole = sum(sizes.values())
    if total <= whole:
        for name, number in mixtures.shares(sizes, total, 1.0).items():
            assert abs(number - total * sizes[name] / whole) < 1


@given(sizes=SIZES, total=st.integers(1, 2000))
def test_temperature_zero_takes_the_same_of_each_that_can_give_it(sizes, total):
    found = mixtures.shares(sizes, total, 0.0)
    most = max(found.values())
    assert all(number >= most - 1 or number == sizes[name] for name, number in found.items())


def test_bad_input_is_named():
    with pytest.raises(NvretError, match="0 questions at temperature 1"):
        mixtures.shares({"a": 1}, 0, 1.0)


def test_smaller_samples_are_parts_of_larger_ones():
    dataset = toy(30)
    samples = [set(mixtures.sample(dataset, n).queries["id"].to_pylist()) for n in (3, 10, 30, 99)]
    assert [len(sample) for sample in samples] == [3, 10, 30, 30]
    assert samples[0] < samples[1] < samples[2]
    assert mixtures.sample(dataset, None) is dataset


def test_a_seed_draws_its_own_sample():
    dataset = toy(200)

    def drawn(number, *seeds):
        return set(mixtures.sample(dataset, number, *seeds).queries["id"].to_pylist())

    assert drawn(20) == drawn(20, 0)
    for seed in (1, 2):
        assert drawn(20, seed) < drawn(60, seed)
        assert len(drawn(20, 0) & drawn(20, seed)) < 10
    assert drawn(20, 0, 1, 2) == drawn(20, 0) | drawn(20, 1) | drawn(20, 2)
    # Drawn out of what several seeds draw, a seed's sample is that of the whole set
    part = mixtures.sample(dataset, 40, 0, 1, 2)
    assert set(mixtures.sample(part, 25, 1).queries["id"].to_pylist()) == drawn(25, 1)


def test_sampled_passages_hold_every_relevant_one():
    dataset = mixtures.sample(toy(30), 5)
    small = mixtures.sample_passages(dataset, 12)
    assert small.corpus.num_rows == 12
    assert small.queries.equals(dataset.queries)
    assert len(small.pairs[0]) == 5
    assert mixtures.sample_passages(dataset, 2).corpus.num_rows == 5
    first = [f"p{row}" for row in range(7)]
    ids = mixtures.sample_passages(dataset, 14, first).corpus["id"].to_pylist()
    assert len(ids) == 14
    assert set(ids) >= {*first, *(f"p{row}" for row in dataset.pairs[1])}


def test_a_merged_set_keeps_texts_and_judgements_apart():
    parts = {"x": toy(4, "one"), "y": toy(6, "two")}
    merged = mixtures.merge(parts)
    assert merged.passages == parts["x"].passages + parts["y"].passages
    assert [rows.tolist() for rows in merged.positives] == [[i] for i in range(10)]
    assert set(merged.queries["id"].to_pylist()) == {
        f"{name}/{row}" for name, part in parts.items() for row in part.queries["id"].to_pylist()
    }
    assert mixtures.merge({"x": parts["x"]}) is parts["x"]
