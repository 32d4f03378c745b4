"""Mining against a float64 oracle: ties, negative scores, copies of the ceiling, tiny corpora."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from campaign.commands import Outcome
from helpers.mining import MatrixTeacher
from nvret import mining, negatives
from nvret.data import RetrievalDataset, from_texts
from nvret.methods import (
    Method,
    NaiveTopK,
    RandomNegatives,
    TopKAbs,
    TopKMarginPos,
    TopKPercPos,
    TopKShifted,
)
from nvret.sampling import SampledTopK, Top1PlusSampled, TopK

CASES = 1_000_000  # (query, positive) pairs, each under one method
SIZES = (1, 2, 3, 5, 9, 30, 63, 64, 65, 130, 300, 700)  # passages: fewer than wanted, whole blocks


class Problem(NamedTuple):
    """A set of texts, their scores (Q, N) float32, and the same of which the oracle knows."""

    dataset: RetrievalDataset
    scores: np.ndarray
    pairs: np.ndarray  # (P, 2) rows of query and positive, in order
    banned: np.ndarray  # (Q, N) bool


def trial(folder: Path, share: float) -> Outcome:
    outcome = Outcome("mined cases against a float64 oracle: a pair of query and positive each")
    rng = np.random.default_rng(20260101)
    sweeps = 0
    while outcome.times < share * CASES:
        sweeps += 1
        problem = _problem(rng, SIZES[sweeps % len(SIZES)])
        _check(outcome, rng, problem, sweeps)
    outcome.notes.append(f"{sweeps} sweeps")
    return outcome


def _problem(rng: np.random.Generator, size: int) -> Problem:
    """Texts that stand twice, questions that stand in the corpus, scores on a grid or none."""
    queries = int(rng.integers(1, 250))
    key = rng.integers(0, max(2, 2 * size), size)
    passages = [f"Text number {k}" if k % 3 else f"text NUMBER {k}!" for k in key]
    asked = np.where(rng.random(queries) < 0.2, rng.choice(key, queries), -1)
    texts = [f"text number {k}?" if k >= 0 else f"question {q}" for q, k in enumerate(asked)]
    counts = rng.integers(1, min(4, size) + 1, queries)
    rows = [np.sort(rng.permutation(size)[:count]) for count in counts]
    pairs = np.stack([np.repeat(np.arange(queries), counts), np.concatenate(rows)], 1)
    keys = np.zeros((queries, key.max() + 2), bool)
    keys[pairs[:, 0], key[pairs[:, 1]]] = True
    keys[np.arange(queries), asked] = True  # the last column is of questions in no corpus
    if (grid := int(rng.choice([1, 3, 20, 1000, 0]))) > 0:
        scores = rng.integers(-grid, grid + 1, (queries, size)) / np.float32(grid)
    else:
        scores = rng.standard_normal((queries, size)) * rng.choice([1e-3, 1, 30])
    scores = (scores - rng.choice([0, 0, 0.5, 2])).astype(np.float32)
    dataset = from_texts("fuzz", passages, texts, [row.tolist() for row in rows])
    return Problem(dataset, scores, pairs, keys[:, key])


def _methods(rng: np.random.Generator) -> list[Method]:
    """Between one and all kinds, some twice, with parameters at their ends too."""
    kinds = [
        RandomNegatives(),
        NaiveTopK(),
        TopKShifted(int(rng.choice([0, 1, 2, 10, 100]))),
        *(TopKAbs(float(value)) for value in rng.choice([-1, 0, 0.3, 0.7, rng.normal()], 2)),
        *(TopKMarginPos(float(value)) for value in rng.choice([-0.5, 0, 0.05, 0.1, 2], 3)),
        *(TopKPercPos(float(value)) for value in rng.choice([0, 0.5, 0.8, 0.95, 1, 1.05, 2], 3)),
        TopKPercPos(float(rng.uniform(0, 2))),
    ]
    number = len(kinds) if rng.random() < 0.7 else int(rng.integers(1, len(kinds)))
    return [kinds[place] for place in rng.permutation(len(kinds))[:number]]


def _limit(method: Method, positive: np.ndarray, safe: bool) -> np.ndarray:
    """The rule in float64, rounded to float32."""
    match method:
        case TopKAbs():
            limit = np.full(len(positive), method.threshold)
        case TopKMarginPos():
            limit = positive - method.margin
        case TopKPercPos():
            up = positive * (2 - method.perc)
            limit = np.where(safe & (positive < 0), up, positive * method.perc)
        case _:
            limit = np.full(len(positive), np.inf)
    return limit.astype(np.float32)


def _check(outcome: Outcome, rng: np.random.Generator, problem: Problem, number: int) -> None:
    """One sweep: each of its tables against the definition."""
    methods, wanted = _methods(rng), int(rng.choice([1, 2, 4, 9]))
    lowest, safe = rng.random() < 0.3, rng.random() < 0.3
    query, row = problem.pairs.T
    scores = problem.scores
    for method in methods:  # copies of the ceilings, and their neighbours on both sides
        limits = _limit(method, scores[query, row].astype(np.float64), safe)
        finite = np.flatnonzero(np.isfinite(limits) & (rng.random(len(limits)) < 0.5))
        column = rng.integers(0, scores.shape[1], len(finite))
        step = rng.choice(np.array([-np.inf, np.inf, np.nan], np.float32), len(finite))
        near = np.where(np.isnan(step), limits[finite], np.nextafter(limits[finite], step))
        free = ~np.isin(query[finite] * scores.shape[1] + column, query * scores.shape[1] + row)
        scores[query[finite][free], column[free]] = near[free]
    # Drawn from several candidates in some of the sweeps
    sampling = [TopK(), TopK(), SampledTopK(wanted + 3), Top1PlusSampled(wanted)][number % 4]
    tables = mining.sweep(
        problem.dataset, MatrixTeacher(scores), methods, wanted, sampling, number,
        ceiling_positive="lowest" if lowest else "own",
        negative_positives="safe" if safe else "literal",
        near_duplicates=None, progress=False,
    )  # fmt: skip
    exact = scores.astype(np.float64)
    positive = exact[query, row]
    if lowest:
        least = np.full(len(scores), np.inf)
        np.minimum.at(least, query, positive)
        positive = least[query]
    order = np.argsort(-exact, 1, kind="stable")[query]  # by falling score, then by row
    for method, table in zip(methods, tables, strict=True):
        outcome.times += len(query)
        below = scores[query] < _limit(method, positive, safe)[:, None]
        allowed = np.take_along_axis(below & ~problem.banned[query], order, 1)
        ranks = np.where(allowed, np.cumsum(allowed, 1), 0)
        depth = sampling.depth(wanted)
        kept = (ranks > method.skip) & (ranks <= method.skip + depth)
        bad = _wrong(problem, table, method, sampling, wanted, (order, ranks, kept))
        if bad.any():
            pair = int(bad.argmax())
            outcome.differences += int(bad.sum())
            outcome.notes.append(
                f"sweep {number}, {method!r}, {sampling}, num_negatives {wanted}, "
                f"lowest {lowest}, safe {safe}: pair {problem.pairs[pair].tolist()}, scores "
                f"{scores[query[pair]].tolist()[:20]}"
            )


def _wrong(
    problem: Problem, table: pa.Table, method: Method, sampling: object, wanted: int,
    right: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """(P,) whether a pair's negatives are not those of the definition."""
    order, ranks, kept = right
    size = problem.scores.shape[1]
    query, positive, negative = (
        pc.cast(pc.utf8_slice_codeunits(table[name], 1), pa.int64()).to_numpy()
        for name in ("query_id", "positive_id", "negative_id")
    )
    known = problem.pairs[:, 0] * size + problem.pairs[:, 1]
    pair = np.searchsorted(known, query * size + positive)
    rank = table["rank"].to_numpy()
    bad = np.zeros(len(known), bool)
    scores = problem.scores[query, negative]
    bad[pair[scores != table["score"].to_numpy()]] = True
    own = problem.scores[query, positive]
    bad[pair[own != table["positive_score"].to_numpy()]] = True
    if not (np.diff(pair * (size + 200) + rank) > 0).all():  # by pair and rank, none twice
        bad[:] = True
    given = np.bincount(pair, minlength=len(known))
    if isinstance(method, RandomNegatives):
        bad[pair[problem.banned[query, negative]]] = True
        left = (~problem.banned).sum(1)[problem.pairs[:, 0]]
        distinct = np.unique(np.stack([pair, negative]), axis=1)
        bad |= np.bincount(distinct[0], minlength=len(known)) != np.minimum(left, wanted)
        bad |= given != np.minimum(left, wanted)
    else:
        place = np.full((len(known), size), 0)
        np.put_along_axis(place, order, np.where(kept, ranks, 0), 1)  # by passage
        bad[pair[place[pair, negative] != rank]] = True  # at its rank among the first
        bad |= given != np.minimum(kept.sum(1), wanted)
        if not isinstance(sampling, SampledTopK) or isinstance(sampling, Top1PlusSampled):
            first = np.zeros(len(known), bool)
            first[pair[rank == method.skip + 1]] = True
            bad |= first != kept.any(1)
    facts = negatives.provenance(table)
    counts = (int((given < wanted).sum()), int((given == 0).sum()), int((wanted - given).sum()))
    if (facts["pairs_short"], facts["pairs_empty"], facts["negatives_missing"]) != counts:
        bad[:] = True
    return bad
