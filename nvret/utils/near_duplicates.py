"""Near-duplicate texts: exact pairs by word trigrams, and the clusters that they form.

Sets of word trigrams are rows of a sparse matrix, and only rare trigrams propose pairs: a pair over
the threshold must share one of them (Chaudhuri, Ganti and Kaushik, "A Primitive Operator for
Similarity Joins in Data Cleaning", ICDE 2006, section 4).
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.utils.errors import NvretError, check_choice
from nvret.utils.words import words

if TYPE_CHECKING:
    import scipy.sparse as sp

Measure = Literal["jaccard", "overlap"]
_WORDS = 3  # of a trigram
# The same for a text of ASCII alone, several times as fast: lower case, all else a space
_SPACE = ord(" ")
_ASCII = bytes(ord(chr(c).lower()) if chr(c).isalnum() else _SPACE for c in range(128))
_ASCII += bytes(range(128, 256))
# Dashes, quotes, dots and a blank that are often all that is not ASCII; none is of a word
_MARKS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00a0"
_TOGETHER = 16384  # texts that are normalised at once
_MANY = 2**31  # bytes that take 64 bits to count, which costs memory
_AT_ONCE = 1 << 19  # trigrams that are looked up at once
_BLOCK = 8_000_000  # candidate entries held at once: about 100 MB
_LARGEST = 2**63 - 1  # number of a trigram, as its words' numbers make it
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(40)  # to 24 bits that look random
_SLACK = 1e-9  # keeps ceil(threshold * size) from rounding up past an exact integer


def normalise(text: str) -> str:
    """Words only, case-folded, one space between them: equal for texts a reader calls the same.

    In scripts that put no spaces between words each character counts as one. A text without a
    single letter or digit keeps its other characters.

    >>> normalise("Who wrote  `` Emma '' ?") == normalise('who wrote "Emma"')
    True
    >>> normalise("?!")
    '?!'
    """
    simple = text
    if not text.isascii():
        for mark in _MARKS:
            simple = simple.replace(mark, " ")
    if simple.isascii() and (plain := b" ".join(simple.encode().translate(_ASCII).split())):
        return plain.decode()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _words_of(folded) or " ".join(folded.split())


def _words_of(folded: str) -> str:
    return " ".join(words(folded.replace("_", " "), piece=1))


def normalised(texts: Sequence[str]) -> pa.ChunkedArray:
    """`normalise` of many texts, most of it outside of Python, so that other threads may run."""
    parts = [_normalised(texts[row : row + _TOGETHER]) for row in range(0, len(texts), _TOGETHER)]
    return pa.chunked_array(parts, pa.large_string())


def _normalised(texts: Sequence[str]) -> pa.LargeStringArray:
    simple = pa.array(texts, pa.large_string())
    if not pc.all(plain := pc.string_is_ascii(simple)).as_py():
        other = pc.invert(plain)
        without = pc.replace_substring_regex(simple.filter(other), f"[{_MARKS}]", " ")
        simple = pc.replace_with_mask(simple, other, without)
    _, offsets, content = simple.buffers()
    offsets = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * simple.offset)
    content = content.to_pybytes().translate(_ASCII) if content else b""
    flat = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]
    word = flat != _SPACE
    kept = word.copy()
    kept[:-1] |= word[1:]  # and of several spaces the last
    ends = np.zeros(len(kept) + 1, np.int32 if len(kept) < _MANY else np.int64)
    np.cumsum(kept, out=ends[1:])
    buffers = map(pa.py_buffer, (ends[offsets - offsets[0]].astype(np.int64), flat[kept]))
    found = pc.ascii_trim_whitespace(pa.LargeStringArray.from_buffers(len(texts), *buffers))
    if not pc.all(plain := pc.string_is_ascii(found)).as_py():
        other = pc.invert(plain)
        found = pc.replace_with_mask(found, other, _by_words(found.filter(other)))
    rows = pc.indices_nonzero(empty := pc.equal(found, "")).tolist()
    by_one = pa.array([normalise(texts[row]) for row in rows], pa.large_string())
    return pc.replace_with_mask(found, empty, by_one)


def _by_words(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Texts of any alphabet, normalised by what stands between blanks, each of it once."""
    split = pc.split_pattern(texts, " ")
    coded = split.values.dictionary_encode()
    known = [
        word if word.isascii() else _words_of(unicodedata.normalize("NFKC", word).casefold())
        for word in coded.dictionary.to_pylist()
    ]
    words = pa.array(known, pa.large_string()).take(coded.indices)
    space = pa.scalar(" ", pa.large_string())
    found = pc.binary_join(pa.ListArray.from_arrays(split.offsets, words), space)
    return pc.ascii_trim_whitespace(pc.replace_substring_regex(found, "  +", " "))


def _numbered(values: pa.ChunkedArray) -> np.ndarray:
    """A number for each value, from 0 by first appearance; int64."""
    parts = (chunk.indices.to_numpy() for chunk in values.dictionary_encode().chunks)
    return np.concatenate([np.empty(0, np.int64), *parts])


def _trigrams(texts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Each text's trigrams as whole numbers, text by text, and how many each text has.

    A shorter text's is the whole text and two empty words. Texts have one space between words.
    """
    split = pc.split_pattern(texts, " ")
    counts = pc.list_value_length(split).to_numpy().astype(np.int64)
    flat = _numbered(pc.list_flatten(split))
    size = int(flat.max(initial=-1)) + 2  # and the empty word
    del split  # as large as all texts
    pa.default_memory_pool().release_unused()
    if len(short := np.flatnonzero(counts < _WORDS)):
        own = _numbered(texts.take(pa.array(short))) + size
        kept = np.repeat(counts >= _WORDS, counts)
        counts[short] = 0
        before = np.repeat(np.cumsum(counts)[short], _WORDS)
        flat = np.insert(flat[kept], before, np.stack([own, *[own * 0 + size - 1] * 2], 1).ravel())
        counts[short], size = _WORDS, size + len(short)
    ids = flat
    for step in range(1, _WORDS):
        if size**_WORDS > _LARGEST:  # two words at a time, and renumbered
            ids = _factorized(ids)
        ids = ids[:-1] * size
        ids += flat[step:]
    within = np.ones(len(flat), bool)  # no trigram runs on into the next text
    for step in range(1, _WORDS):
        within[np.cumsum(counts) - step] = False
    return ids[within[: len(ids)]], counts - _WORDS + 1


def _factorized(values: np.ndarray) -> np.ndarray:
    """A number for each value, from 0; pandas numbers as fast as Arrow, in half of the memory."""
    import pandas as pd

    return pd.factorize(values)[0]


def _incidence(texts: pa.ChunkedArray) -> sp.csr_matrix:
    """(texts, trigrams) matrix of ones; columns run from the rarest trigram to the commonest."""
    ids, counts = _trigrams(texts)
    return _ones(_factorized(ids).astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


def _perhaps_in(ids: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Whether an id may be among ``some`` of them, a mask: False is certain."""
    table, there = np.zeros(1 << 24, bool), np.empty(len(ids), bool)
    blocks = [slice(start, start + _AT_ONCE) for start in range(0, len(ids), _AT_ONCE)]
    for block in blocks:
        table[(ids[block][some[block]].astype(np.uint64) * _MIX) >> _SHIFT] = True
    for block in blocks:
        there[block] = table[(ids[block].astype(np.uint64) * _MIX) >> _SHIFT]
    return there


def _ones(ids: np.ndarray, indptr: np.ndarray) -> sp.csr_matrix:
    """The matrix of sets: where each of them ends in ``ids`` says ``indptr``."""
    import scipy.sparse as sp

    columns = int(ids.max(initial=-1)) + 1
    matrix = sp.csr_matrix((np.ones(len(ids), np.int32), ids, indptr), (len(indptr) - 1, columns))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    frequency = np.bincount(matrix.indices, minlength=columns)
    matrix = matrix[:, np.argsort(frequency, kind="stable")]
    matrix.sort_indices()
    return matrix


def _rare_prefix(matrix: sp.csr_matrix, threshold: float) -> sp.csr_matrix:
    """Of each set, its rarest |x| - ceil(t |x|) + 1 members: a partner at t shares one of them."""
    import scipy.sparse as sp

    sizes = np.diff(matrix.indptr)
    kept = sizes - np.ceil(threshold * sizes - _SLACK).astype(np.int64) + 1
    kept = np.minimum(np.maximum(kept, 0), sizes)
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], sizes)
    mask = position < np.repeat(kept, sizes)
    indptr = np.concatenate([[0], np.cumsum(kept)])
    return sp.csr_matrix((matrix.data[mask], matrix.indices[mask], indptr), shape=matrix.shape)


def _row_blocks(cost: np.ndarray) -> Iterator[slice]:
    """Consecutive rows whose costs add up to at most ``_BLOCK`` and a row more."""
    ends = np.flatnonzero(np.diff(np.cumsum(cost) // _BLOCK)) + 1
    for start, end in itertools.pairwise([0, *ends.tolist(), len(cost)]):
        yield slice(start, end)


def _candidates(left: sp.csr_matrix, right: sp.csr_matrix) -> Iterator[np.ndarray]:
    """(pairs, 2) rows of ``left`` and ``right`` that share a column, block by block."""
    frequency = np.bincount(right.indices, minlength=right.shape[1])
    transposed = right.T.tocsr()
    for block in _row_blocks(left @ frequency):
        product = (left[block] @ transposed).tocoo()
        rows = product.row.astype(np.int64) + block.start
        yield np.stack([rows, product.col.astype(np.int64)], axis=1)


def _shared(left: sp.csr_matrix, right: sp.csr_matrix, pairs: np.ndarray) -> np.ndarray:
    """How many columns each pair of rows shares, (P,) int64."""
    sizes = np.diff(left.indptr)[pairs[:, 0]] + np.diff(right.indptr)[pairs[:, 1]]
    shared = np.zeros(len(pairs), np.int64)
    for block in _row_blocks(sizes):
        i, j = pairs[block].T
        shared[block] = np.asarray(left[i].multiply(right[j]).sum(axis=1)).reshape(-1)
    return shared


def _similarities(
    left: sp.csr_matrix, right: sp.csr_matrix, pairs: np.ndarray, measure: Measure
) -> np.ndarray:
    """The measure for each pair of rows, (P,) float64."""
    shared = _shared(left, right, pairs)
    a, b = np.diff(left.indptr)[pairs[:, 0]], np.diff(right.indptr)[pairs[:, 1]]
    return shared / (a + b - shared if measure == "jaccard" else np.minimum(a, b))


def near_duplicate_pairs(
    texts: Sequence[str],
    others: Sequence[str] | None = None,
    *,
    threshold: float,
    measure: Measure = "jaccard",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of texts whose sets of word trigrams are at least ``threshold`` similar. Exact.

    Texts are compared after :func:`normalise`. One of fewer than three words is similar (1) to its
    equals alone.

    Args:
        others: texts to compare them with; None compares ``texts`` with themselves (i < j).
        threshold: in (0, 1]; a pair at the threshold counts.
        measure: "jaccard" |x & y| / |x | y|, or "overlap" |x & y| / min(|x|, |y|), which also
            finds a text inside a longer one.
    Returns:
        i (P,) int64, j (P,) int64, similarity (P,) float64, ordered by (i, j).

    >>> near_duplicate_pairs(["a b c d", "A b c, d!", "a b c x"], threshold=0.3)
    (array([0, 0, 1]), array([1, 2, 2]), array([1.        , 0.33333333, 0.33333333]))
    """
    _check(threshold)
    check_choice("measure", measure, ("jaccard", "overlap"))
    within = others is None
    both = _incidence(normalised([*texts, *(others or ())]))
    left, right = both[: len(texts)], both if within else both[len(texts) :]
    found = [(np.empty((0, 2), np.int64), np.empty(0))]
    proposals = _candidates(_rare_prefix(left, threshold), right)
    if measure == "overlap" and not within:  # the bound holds for the smaller set, on either side
        others_first = _candidates(_rare_prefix(right, threshold), left)
        proposals = itertools.chain(proposals, (pairs[:, ::-1] for pairs in others_first))
    for pairs in proposals:
        if within:
            pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
        pairs = np.unique(pairs, axis=0)
        similarity = _similarities(left, right, pairs, measure)
        keep = similarity >= threshold
        found.append((pairs[keep], similarity[keep]))
    pairs, index = np.unique(np.concatenate([p for p, _ in found]), axis=0, return_index=True)
    return pairs[:, 0], pairs[:, 1], np.concatenate([s for _, s in found])[index]


def near_copies(
    texts: pa.ChunkedArray, rows: np.ndarray, *, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """All texts that are copies of some of them: what `near_duplicate_pairs` finds for these rows.

    Only trigrams of the rows' texts are numbered, for the others are shared with none of them.

    Args:
        texts: N, as `normalised` makes them.
        rows: (R,) rising.
        threshold: Jaccard similarity, in (0, 1]; a pair at the threshold counts.
    Returns:
        i (P,) int64, places in ``rows``, and j (P,) int64, rows; each row is its own copy.

    >>> near_copies(normalised(["a b c d", "A b c, d!", "a b c x"]), np.array([1]), threshold=0.8)
    (array([0, 0]), array([0, 1]))
    """
    _check(threshold)
    ids, counts = _trigrams(texts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    asked = np.zeros(len(counts), bool)
    asked[rows] = True
    there = _perhaps_in(ids, np.repeat(asked, counts))
    numbers = _factorized(ids[there]).astype(np.int32)
    right = _ones(numbers, np.concatenate([[0], np.cumsum(there)])[ends])
    left, sizes, found = right[rows], np.diff(right.indptr), [np.empty((0, 2), np.int64)]
    for pairs in _candidates(_rare_prefix(left, threshold), right):
        pairs = np.unique(pairs, axis=0)
        shared, own = _shared(left, right, pairs), sizes[rows[pairs[:, 0]]]
        # A text has at least the trigrams that are left of it: so similar it may be at most
        near = shared / (own + sizes[pairs[:, 1]] - shared) >= threshold
        pairs, shared, own = pairs[near], shared[near], own[near]
        for row in np.unique(pairs[~asked[pairs[:, 1]], 1]).tolist():
            sizes[row] = len(np.unique(ids[ends[row] : ends[row + 1]]))
        found.append(pairs[shared / (own + sizes[pairs[:, 1]] - shared) >= threshold])
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise NvretError(f"threshold is {threshold}; expected a number in (0, 1]")


def distinct(texts: Sequence[str], ids: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Which texts of each row are no near-copy of one before them that is kept.

    Args:
        texts: N of them.
        ids: (P, K) places in ``texts``; -1 is none, and nothing comes after it.
        threshold: Jaccard similarity of word trigrams from which one is a copy.
        most: kept in a row; what comes after them is not.
    Returns:
        (P, K) bool.

    >>> distinct(["a b c", "A b, c", "x y z"], np.array([[0, 1, 2], [2, 1, -1]]), 0.8, 2)
    array([[ True, False,  True],
           [ True,  True, False]])
    """
    _check(threshold)
    kept = np.zeros(ids.shape, bool)
    rows = np.flatnonzero((ids >= 0).any(1)) if ids.size else np.empty(0, np.int64)
    if not len(rows):
        return kept
    used, places = np.unique(ids[rows], return_inverse=True)
    places = places.reshape(ids[rows].shape)
    matrix = _incidence(normalised([texts[place] if place >= 0 else "" for place in used.tolist()]))
    taken = np.full((len(rows), most), -1)  # rows of the matrix that are kept, in order
    counts = np.zeros(len(rows), np.int64)
    for column in range(ids.shape[1]):
        own = np.flatnonzero((ids[rows, column] >= 0) & (counts < most))
        fresh = np.ones(len(own), bool)
        for before in taken.T[: counts.max()]:
            asked = np.flatnonzero(fresh & (before[own] >= 0))
            if not len(asked):
                break
            pairs = np.stack([before[own[asked]], places[own[asked], column]], axis=1)
            fresh[asked] = _similarities(matrix, matrix, pairs, "jaccard") < threshold
        new = own[fresh]
        taken[new, counts[new]] = places[new, column]
        counts[new] += 1
        kept[rows[new], column] = True
    return kept


def components(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Connected components of an undirected graph: (count,) int32, numbered by their first node.

    >>> components(5, np.array([3]), np.array([1]))
    array([0, 1, 2, 1, 3], dtype=int32)
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(i), bool), (i, j)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return _numbered(pa.chunked_array([labels])).astype(np.int32)


def clusters(texts: Sequence[str], *, threshold: float, measure: Measure = "jaccard") -> np.ndarray:
    """Near-duplicate clusters, which `near_duplicate_pairs` links: (N,) int32 labels.

    >>> clusters(["a b c d", "w x y z", "A b c, d!"], threshold=0.9)
    array([0, 1, 0], dtype=int32)
    """
    i, j, _ = near_duplicate_pairs(texts, threshold=threshold, measure=measure)
    return components(len(texts), i, j)
