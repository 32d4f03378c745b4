"""BM25, the sparse teacher: many queries at once, as sparse matrix products.

Scores are those of ``rank_bm25.BM25Okapi`` on the same tokens, wherever its formula is sound: its
inverse document frequency is 0 or below for a term that stands in at least half of the passages,
and a passage could lose score for holding a word of the query. Here such a term gets the same
small positive floor (``epsilon`` times the mean idf) in each of these cases.

A passage that shares no word with the query is not a candidate, so that a query of unknown words
ranks nothing.

Some queries are one product of two sparse matrices that is written as a dense one. oneMKL has it,
and torch hands it on; scipy, where there is no MKL, makes a sparse product first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nvret import search
from nvret.utils.errors import NvretError
from nvret.utils.words import words

# Lucene's English stop words
STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it",
    "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these",
    "they", "this", "to", "was", "will", "with",
})  # fmt: skip
# Passages of one sparse matrix: a term's places take memory for each, a tile's rows for its width
PART = 262_144


def tokenize(text: str) -> list[str]:
    """Lower-case words that are not in ``STOP_WORDS``, unstemmed; pairs of characters in scripts
    that put no spaces between words.

    >>> tokenize("Who wrote the Origin of Species (1859)?")
    ['who', 'wrote', 'origin', 'species', '1859']
    """
    return [word for word in words(text.lower(), piece=2) if word not in STOP_WORDS]


class BM25:
    """An index of passages that scores batches of queries.

    Args:
        passages: N tokenized passages.
        k1, b, epsilon: as in ``rank_bm25.BM25Okapi``, with its defaults.

    >>> index = BM25([["red", "apple"], ["green", "pear"], ["blue", "plum"], ["red", "plum"]])
    >>> index.top_k([["apple", "pie"], ["unknown"]], k=2).ids
    tensor([[ 0, -1],
            [-1, -1]])
    """

    def __init__(
        self,
        passages: Iterable[Sequence[str]],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        epsilon: float = 0.25,
    ) -> None:
        self.vocabulary: dict[str, int] = {}
        counts = self._counts(passages, grow=True)
        if counts.shape[0] == 0 or counts.nnz == 0:
            raise NvretError("BM25 needs at least one passage with at least one token")
        num_passages = counts.shape[0]
        lengths = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
        frequency = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log(num_passages - frequency + 0.5) - np.log(frequency + 0.5)
        # In a corpus so small that even the mean is negative, any positive number keeps the order
        floor = max(epsilon * float(idf.mean()), 1e-6)
        idf = np.where(idf > 0, idf, floor)

        counts = counts.tocoo()
        saturation = k1 * (1 - b + b * lengths[counts.row] / lengths.mean())
        weights = idf[counts.col] * counts.data * (k1 + 1) / (counts.data + saturation)
        self._weights = sparse.csr_array((weights.astype(np.float32), counts.coords), counts.shape)
        self._by_term = [self._weights[s : s + PART].T.tocsr() for s in range(0, len(self), PART)]

    def __len__(self) -> int:
        return self._weights.shape[0]

    def _counts(self, texts: Iterable[Sequence[str]], *, grow: bool = False) -> sparse.csr_array:
        """(texts, terms) token counts; unknown tokens are left out unless the vocabulary grows."""
        columns, ends = [], [0]
        for tokens in texts:
            if grow:
                for token in tokens:
                    self.vocabulary.setdefault(token, len(self.vocabulary))
            columns += [n for n in map(self.vocabulary.get, tokens) if n is not None]
            ends.append(len(columns))
        parts = np.ones(len(columns), np.float32), np.array(columns, np.int64), np.array(ends)
        counts = sparse.csr_array(parts, shape=(len(ends) - 1, len(self.vocabulary)))
        counts.sum_duplicates()
        return counts

    def block_scores(self, queries: Sequence[Sequence[str]], passages: np.ndarray) -> np.ndarray:
        """(Q, P) float32 scores of each query with P rows of passages; 0 where none is shared."""
        return (self._counts(queries) @ self._weights[passages].T).toarray()

    def pair_scores(self, queries: Sequence[Sequence[str]], passages: np.ndarray) -> np.ndarray:
        """(P,) float32 scores of query i with passage ``passages[i]``; 0 where none is shared."""
        product = self._counts(queries).multiply(self._weights[np.asarray(passages, np.int64)])
        return np.asarray(product.sum(1), np.float32).ravel()

    def top_k(
        self,
        queries: Sequence[Sequence[str]],
        k: int,
        *,
        ceiling: np.ndarray | Tensor | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
        progress: bool = False,
    ) -> search.SearchResult:
        """The k best passages of each tokenized query: ``nvret.search.top_k`` on BM25 scores."""
        from nvret.scale import tiles

        counts, mkl = self._counts(queries), torch.backends.mkl.is_available()
        with warnings.catch_warnings():  # torch says it once, of the first
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            parts = [_csr_tensor(matrix) for matrix in self._by_term] if mkl else self._by_term

        def score(rows: slice, columns: slice, out: Tensor) -> None:
            part = parts[columns.start // PART]
            if mkl:
                torch.addmm(out, _csr_tensor(counts, rows), part, beta=0, out=out)
            else:
                out.copy_(torch.from_numpy((counts[rows] @ part).toarray()))

        return tiles.top_k_scores(
            score,
            len(queries),
            len(self),
            k,
            ceiling=ceiling,
            exclude=exclude,
            floor=0.0,  # every weight is positive: 0 means that no word is shared
            most_passages=PART,
            progress=progress,
        )


def _csr_tensor(matrix: sparse.csr_array, rows: slice = slice(None)) -> Tensor:
    """Rows of the matrix as torch's, on the same values; MKL reads 32-bit indices."""
    ends = matrix.indptr[rows.start : None if rows.stop is None else rows.stop + 1]
    inside, shape = slice(ends[0], ends[-1]), (len(ends) - 1, matrix.shape[1])
    parts = (ends - ends[0]).astype(np.int32), matrix.indices[inside].astype(np.int32)
    return torch.sparse_csr_tensor(
        *map(torch.from_numpy, (*parts, matrix.data[inside])), size=shape, check_invariants=False
    )
