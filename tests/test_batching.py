"""Ragged token ids and the batches that are cut out of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvret import assets
from nvret.encode import Encoder
from nvret.models import batching
from nvret.models.batching import Ragged, token_budget_batches


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200), st.integers(0, 100))
def test_every_row_once_within_budget_and_slack(lengths, budget, slack):
    lengths = np.array(lengths, np.int64)
    batches = list(token_budget_batches(lengths, budget, slack=slack))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = lengths[batch].max()
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert len(batch) * longest - lengths[batch].sum() <= slack


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8))
def test_ragged_rows_come_back(rows):
    padded, lengths = Ragged.of(rows).padded(range(len(rows)), fill=-1)
    assert [row[:n].tolist() for row, n in zip(padded, lengths, strict=True)] == rows
    assert all((row[n:] == -1).all() for row, n in zip(padded, lengths, strict=True))


def test_tokens_do_not_depend_on_the_chunk(monkeypatch):
    encoder = Encoder.load(assets.model_path("potion-base-8m"))
    texts = ["moon", "the tides of the sea", "Ünïcödé 東京", "a", "b c"]
    whole = encoder.tokenize(texts, progress=False)
    monkeypatch.setattr(batching, "CHUNK", 2)
    cut = encoder.tokenize(texts, progress=False)
    np.testing.assert_array_equal(whole.ids, cut.ids)
    np.testing.assert_array_equal(whole.offsets, cut.offsets)
