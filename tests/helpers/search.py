"""A brute-force oracle of exact search, and adversarial problems for it."""

import numpy as np
from hypothesis import strategies as st


def oracle(scores, k, ceiling=None, exclude=None):
    """Sort every allowed passage of a (Q, N) float64 matrix by (-score, id)."""
    ids = np.full((len(scores), k), -1)
    best = np.full((len(scores), k), -np.inf)
    for row, values in enumerate(scores):
        limit = np.inf if ceiling is None else ceiling[row]
        banned = set() if exclude is None else set(exclude[row])
        allowed = [c for c, s in enumerate(values) if s < limit and c not in banned]
        allowed.sort(key=lambda c: (-values[c], c))
        ids[row, : len(allowed[:k])] = allowed[:k]
        best[row, : len(allowed[:k])] = values[allowed[:k]]
    return ids, best


@st.composite
def problems(draw):
    """Small integer vectors: exact in float32, full of ties, negative scores among them."""
    q, n = draw(st.integers(1, 9)), draw(st.integers(1, 700))
    d = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.integers(0, 6))
    queries = rng.integers(-spread, spread + 1, (q, d)).astype(np.float32)
    corpus = rng.integers(-spread, spread + 1, (n, d)).astype(np.float32)
    k = draw(st.sampled_from([1, 2, 3, 5, n, n + 3]))
    ceiling = rng.integers(-20, 30, q).astype(np.float32) if draw(st.booleans()) else None
    exclude = None
    if draw(st.booleans()):
        exclude = [rng.permutation(n)[: rng.integers(0, n + 1)].tolist() for _ in range(q)]
    return queries, corpus, k, ceiling, exclude
