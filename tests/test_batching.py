"""Ragged token ids, the batches that are cut out of them, and a thread for each batch."""

import functools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

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


# What a tokenizer of BERT's kind cleans, parts, joins or takes as one of its own
PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [" ", "  ", "\t", "\u00a0", "\u200b", "\u0301", "\u0323", "\ufffd", "é", "İ", "ß", "Σ", "ﬁ",
         "東京", "가", "[SEP]", "[MASK]", " [CLS] ", "[UNK", "don't", "end.", "x" * 101, "moon"]
    ),
)  # fmt: skip
TEXTS = st.lists(
    st.lists(PIECES, max_size=8).map("".join).filter(lambda t: t.isprintable() or "\t" in t),
    min_size=1, max_size=6,
)  # fmt: skip


@functools.cache
def _encoder(name):
    return Encoder.load(assets.model_path(name))


@pytest.mark.parametrize("name", ["minilm-l6", "potion-base-8m", "multilingual-cased"])
@given(TEXTS, st.one_of(st.none(), st.integers(2, 9)), st.booleans(), st.sampled_from(["", "q: "]))
def test_tokens_of_words_are_those_of_the_text(name, texts, max_length, special, prompt):
    tokenizer = _cased() if name == "multilingual-cased" else _encoder(name).tokenizer
    options = {"prompt": prompt, "max_length": max_length, "special_tokens": special}
    texts = [text + " a" for text in texts]  # none without a token
    whole = batching.tokenize(tokenizer, texts, **options, progress=False)
    words = batching.WordTokens.of(tokenizer)
    for _ in range(2):  # new words, then known ones
        found = batching.tokenize(tokenizer, texts, **options, words=words, progress=False)
        np.testing.assert_array_equal(found.ids, whole.ids)
        np.testing.assert_array_equal(found.offsets, whole.offsets)
        assert found.ids.dtype == whole.ids.dtype == np.int32


@functools.cache
def _cased():
    """Accents and case kept, as multilingual BERT does."""
    tokenizer = Tokenizer.from_str(_encoder("minilm-l6")._plain_tokenizer().to_str())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return tokenizer


def test_the_memory_for_words_is_bounded(monkeypatch):
    tokenizer = _encoder("minilm-l6").tokenizer
    monkeypatch.setattr(batching, "MOST_WORDS", 4)
    words = batching.WordTokens.of(tokenizer)
    for texts in (["the moon and sun", "sun"], ["a cat", "the cat"], ["one two three four five"]):
        found = batching.tokenize(tokenizer, texts, words=words, progress=False)
        whole = batching.tokenize(tokenizer, texts, progress=False)
        np.testing.assert_array_equal(found.ids, whole.ids)
        assert len(words._codes) <= max(4, len(" ".join(texts).split()))


def test_what_a_tokenizer_was_last_asked_to_fill_or_cut_is_no_special_token():
    tokenizer = Tokenizer.from_str(_encoder("minilm-l6")._plain_tokenizer().to_str())
    whole = batching.tokenize(tokenizer, ["the moon"], progress=False)
    tokenizer.enable_padding(length=16)  # as the files of published models often say
    tokenizer.enable_truncation(2)
    words = batching.WordTokens.of(tokenizer)
    found = batching.tokenize(tokenizer, ["the moon"], words=words, progress=False)
    np.testing.assert_array_equal(found.ids, whole.ids)


def test_only_a_tokenizer_whose_words_stand_alone_is_read_by_words():
    tokenizer = Tokenizer.from_str(_encoder("minilm-l6")._plain_tokenizer().to_str())
    assert batching.WordTokens.of(tokenizer) is not None
    tokenizer.add_tokens(["new moon"])  # one token of two words
    assert batching.WordTokens.of(tokenizer) is None
    assert batching.WordTokens.of(_encoder("smollm2-135m").tokenizer) is None  # by bytes


@pytest.fixture(params=[1, 2, 5])
def count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_the_setting_is_restored(count):
    names, inside = set(), set()

    def work(n):
        names.add(threading.get_ident())
        inside.add(torch.get_num_threads())
        return n, torch.ones(300, 300).mm(torch.ones(300, 300)).sum().item()

    found = list(batching.in_threads(work, iter(range(100))))
    assert [task for task, _ in found] == list(range(100))
    assert [result for _, result in found] == [(n, 27e6) for n in range(100)]
    assert torch.get_num_threads() == count
    assert inside == {1}
    assert len(names) <= count


def test_tasks_are_taken_as_they_are_needed(count):
    taken = []

    def tasks():
        for n in range(1000):
            taken.append(n)
            yield n

    results = batching.in_threads(lambda n: n, tasks())
    next(results)
    assert len(taken) <= 2 * count + 1
    results.close()
    assert torch.get_num_threads() == count


def test_an_error_reaches_the_caller(count):
    def work(n):
        if n == 3:
            raise ValueError("three")
        return n

    with pytest.raises(ValueError, match="three"):
        list(batching.in_threads(work, range(50)))
    assert torch.get_num_threads() == count
