"""Words in several scripts: what BM25 counts and what near-duplicates compare."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret.bm25 import BM25, tokenize
from nvret.utils import words as words_module
from nvret.utils.near_duplicates import near_duplicate_pairs, normalise
from nvret.utils.words import words

# Pairs that differ in a vowel sign, a tone mark or a character alone
DIFFERENT = {
    "Devanagari": ("दिन", "दीन"),  # day, poor
    "Thai": ("ไกล", "ใกล้"),  # far, near
    "Bengali": ("কাল", "কোল"),
    "Tamil": ("கல்", "கால்"),
    "Hebrew": ("סֵפֶר", "סַפָּר"),  # book, barber
    "Chinese": ("北京", "东京"),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different_words_stay_different(pair):
    one, other = pair
    assert normalise(one) != normalise(other)
    assert tokenize(one) != tokenize(other)


@pytest.mark.parametrize(
    "text", ["हिन्दी भाषा", "বাংলা ভাষা", "العَرَبِيَّة لغة", "русский язык", "한국어 문장"]
)
def test_a_word_is_one_token_with_its_marks(text):
    assert tokenize(text) == text.split()
    assert normalise(f"«{text}»!") == text


def test_scripts_without_spaces_are_searched_by_pieces():
    passages = [
        "東京タワーは東京にある。",
        "富士山は日本で一番高い山です。",
        "กรุงเทพเป็นเมืองหลวงของไทย",
    ]
    index = BM25([tokenize(text) for text in passages])
    queries = [tokenize("富士山の高さ"), tokenize("東京"), tokenize("เมืองหลวง")]
    assert index.top_k(queries, k=1).ids[:, 0].tolist() == [1, 0, 2]


def test_near_duplicates_in_chinese():
    texts = [
        "北京是中华人民共和国的首都。",
        "北京是中华人民共和国的首都!",
        "上海是中国最大的城市。",
    ]
    i, j, _ = near_duplicate_pairs(texts, threshold=0.8)
    assert (i.tolist(), j.tolist()) == ([0], [1])


def test_composed_and_decomposed_accents_are_the_same():
    decomposed = unicodedata.normalize("NFD", "café naïve Ёж")
    assert tokenize(decomposed) == tokenize("café naïve Ёж")


@examples(300)
@given(st.text(st.characters(categories=["L", "N", "P", "Z"], max_codepoint=0x24F), max_size=40))
def test_latin_words_are_runs_of_word_characters(text):
    composed = unicodedata.normalize("NFC", text)
    assert words(text, piece=2) == re.findall(r"\w+", composed)


@examples(300)
@given(st.text(max_size=40), st.integers(1, 3))
def test_every_letter_is_in_a_word(text, piece):
    letters = [c for c in unicodedata.normalize("NFC", text) if re.match(r"\w", c)]
    kept = set("".join(words(text, piece=piece)))
    assert kept.issuperset(letters)


def test_what_is_found_fast_is_found_the_other_way():
    """Every character of the range, between two letters and beside a space."""
    whole = [chr(c) for c in range(0x2100) if words_module._LATIN.fullmatch(chr(c))]
    assert len(whole) > 900
    for text in (f"a{c}b {c}d" for c in whole):
        text = unicodedata.normalize("NFC", text)
        slow = [run[0] for run in words_module._RUN.finditer(text)]
        assert words_module.words(text, piece=1) == slow, text
