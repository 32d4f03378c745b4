"""Near-duplicates against a brute-force oracle over Python sets."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret.utils import near_duplicates
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import clusters, components, near_duplicate_pairs, normalise

# few words, so that many texts share n-grams; punctuation, so that normalising matters
texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "C", "c,", "?"]), max_size=9).map(" ".join), max_size=7
)
thresholds = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1.0])


def brute_force(left, right, threshold, measure):
    def grams(text):
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    found = []
    first = [normalise(text) for text in left]
    second = first if right is None else [normalise(text) for text in right]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            if right is None and i >= j:
                continue
            x, y = grams(a), grams(b)
            if not x and not y:
                similarity = float(a == b)
            elif not x or not y:
                similarity = 0.0
            else:
                size = len(x | y) if measure == "jaccard" else min(len(x), len(y))
                similarity = len(x & y) / size
            if similarity >= threshold:
                found.append((i, j, similarity))
    return found


@examples(300)
@given(texts, st.none() | texts, thresholds, st.sampled_from(["jaccard", "overlap"]))
def test_pairs_are_those_of_the_brute_force(left, right, threshold, measure):
    arrays = near_duplicate_pairs(left, right, threshold=threshold, measure=measure)
    assert [array.dtype for array in arrays] == [np.int64, np.int64, np.float64]
    found = list(zip(*(array.tolist() for array in arrays), strict=True))
    assert found == brute_force(left, right, threshold, measure)


@examples(200)
@given(texts, thresholds, st.data())
def test_copies_of_some_rows_are_those_of_all_pairs(some, threshold, data):
    rows = data.draw(
        st.lists(st.sampled_from(range(len(some))), unique=True) if some else st.just([])
    )
    rows = np.sort(np.array(rows, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_TOGETHER", 2)  # a word has one number in all blocks
        patch.setattr(near_duplicates, "_MANY", 10)
        plain = near_duplicates.normalised(some)
    found = near_duplicates.near_copies(plain, rows, threshold=threshold)
    own = near_duplicate_pairs([some[row] for row in rows], some, threshold=threshold)
    for one, other in zip(found, own, strict=False):
        np.testing.assert_array_equal(one, other)


@given(texts, texts)
def test_a_vocabulary_too_large_for_one_number_changes_nothing(left, right):
    whole = near_duplicate_pairs(left, right, threshold=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_LARGEST", 0)
        for one, other in zip(whole, near_duplicate_pairs(left, right, threshold=0.3), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("measure", ["jaccard", "overlap"])
def test_block_size_does_not_change_the_result(monkeypatch, measure):
    generator = np.random.default_rng(0)
    some = [" ".join(generator.choice(list("abcd"), 12)) for _ in range(60)]
    whole = near_duplicate_pairs(some, threshold=0.3, measure=measure)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 7)
    blocks = near_duplicate_pairs(some, threshold=0.3, measure=measure)
    assert len(whole[0]) > 10
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_array_equal(a, b)


def test_overlap_finds_a_text_inside_another():
    long = "one two three four five six seven eight nine ten"
    assert near_duplicate_pairs(["four five six seven"], [long], threshold=0.9)[0].size == 0
    found = near_duplicate_pairs(["four five six seven"], [long], threshold=1, measure="overlap")
    assert found[2].tolist() == [1.0]


def test_clusters_are_numbered_by_their_first_text():
    chain = ["a b c d e", "x y z", "c d e f g", "b c d e f", "X, y: z!"]
    assert clusters(chain, threshold=0.5).tolist() == [0, 1, 0, 0, 1]
    assert clusters([], threshold=0.5).tolist() == []
    assert components(0, np.array([], np.int64), np.array([], np.int64)).dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": 0.5, "measure": "dice"}, "measure is 'dice'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(NvretError, match=message):
        near_duplicate_pairs(["a b c"], **arguments)


@examples(500)
@given(
    st.text(st.characters(max_codepoint=127))
    | st.text("aB_éﬁ \u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00a0-", max_size=12)
)
def test_the_short_way_for_simple_texts_is_the_long_way(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[\W_]+", " ", folded).strip()
    assert near_duplicates.normalise(text) == (words or " ".join(folded.split()))


@examples(200)
@given(st.lists(st.text(st.characters(max_codepoint=127)) | st.text(), max_size=12),
       st.sampled_from([1, 3, 100]))  # fmt: skip
def test_many_texts_at_once_are_normalised_as_each_alone(texts, together):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_TOGETHER", together)
        found = near_duplicates.normalised(texts)
    found.validate(full=True)
    assert found.to_pylist() == [normalise(text) for text in texts]


def test_marks_and_other_alphabets_are_normalised_among_plain_texts():
    texts = ["“Who”…", "", "?!", "a  b", " c", "d ", "Straße — «ﬁn»", "हिन्दी", "東京 x", "\u00a0"]
    assert near_duplicates.normalised(texts).to_pylist() == [normalise(text) for text in texts]


# Accents, ligatures, other alphabets, blanks, numbers in circles, letters of mathematics
MARKS = (
    "\u0301\u0307\u0331\u0338\u00b4\u2013\u00e9\u0130\ufb01\u00df\u03a3\u0e01\u0e34\u6771\u30ab\u3099"
    "\u1100\u1161\u0939\u093f\u00bd\u2460\u3000\u200d\U0001d400\U0001f600"
)


@examples(1000)
@given(st.lists(st.sampled_from([*"aIKHS_ -=`1.", *MARKS]), max_size=10).map("".join))
def test_words_may_be_normalised_one_by_one(text):
    """Marks, ligatures, other alphabets, and what they are next to."""
    assert near_duplicates.normalised([text, "a"]).to_pylist() == [normalise(text), "a"]
