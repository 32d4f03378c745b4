"""Hard-negative mining: five methods as a ceiling and a skip, three ways to sample.

A teacher ranks the corpus for each (query, positive) pair. A method says which candidates may be
negatives: those that score strictly below a *ceiling*, after *skip* leading ranks are dropped. In
the two positive-aware methods the ceiling depends on the positive's own score, since a candidate
that the teacher places as high as the positive is likely to be a positive that nobody labelled.

One search serves a whole sweep of methods. Under any ceiling the best candidates are a run of the
ranking without one: those above it are its first ranks. So a ranking that is a little deeper than a
method needs answers every method whose ceiling cuts off no more than that, and only the pairs that
it cuts deeper are searched again, under their own ceiling.

Source: NV-Retriever, arXiv 2407.15831, section 3.1 (methods) and section 4.3 (sampling).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret import negatives, teachers
from nvret.data import RetrievalDataset
from nvret.methods import (
    Method,
    NaiveTopK,
    RandomNegatives,
    TopKAbs,
    TopKMarginPos,
    TopKPercPos,
    TopKShifted,
)
from nvret.sampling import (
    Distinct,
    SampledTopK,
    Sampling,
    Top1PlusSampled,
    TopK,
    draw,
    draw_rows,
    gumbel_noise,
    pair_keys,
)
from nvret.utils import machine
from nvret.utils.errors import NvretError, check_choice
from nvret.utils.near_duplicates import near_copies, normalised

__all__ = [
    "NaiveTopK", "RandomNegatives", "SampledTopK", "Top1PlusSampled", "TopK", "TopKAbs",
    "TopKMarginPos", "TopKPercPos", "TopKShifted", "exclusions", "mine", "sweep",
]  # fmt: skip

logger = logging.getLogger("nvret")
SPARE = 64  # ranks of a shared search beyond those that a method needs


def mine(
    dataset: RetrievalDataset,
    teacher: str | teachers.Teacher | teachers.Scorer,
    method: Method,
    num_negatives: int = 4,
    sampling: Sampling = TopK(),  # noqa: B008 (frozen)
    seed: int = 0,
    *,
    ceiling_positive: Literal["own", "lowest"] = "own",
    negative_positives: Literal["literal", "safe"] = "literal",
    near_duplicates: float | None = 0.8,
    skip: int = 0,
    min_score: float | None = None,
    distinct: float | None = None,
    exclude: list[np.ndarray] | None = None,
    progress: bool = True,
) -> pa.Table:
    """Mine negatives for every (query, positive) pair of a data set.

    Args:
        dataset: queries, corpus and labelled positives.
        teacher: the scorer, or its name (``"bm25"`` or a model's name).
        method: which candidates may be negatives.
        num_negatives: negatives per pair.
        sampling: which of the candidates are taken.
        seed: of the sampling. Each pair draws from its own stream, so that the order of the
            queries and the other queries of the data set do not change a pair's negatives.
        ceiling_positive: whose score sets the ceiling: the pair's own positive (the paper), or
            the lowest positive of the query ("lowest", as in some other tools).
        negative_positives: what TopK-PercPos does where the positive's score is below 0 and
            ``score * perc`` lies *above* it: follow the paper all the same ("literal", with a
            warning) or lower the ceiling by the same share ("safe").
        near_duplicates: word-trigram Jaccard similarity from which a passage counts as a copy of a
            positive and is no negative; None keeps only the check for the same text.
        skip: further leading ranks that are dropped, of those that the method allows.
        min_score: the least that a negative may score.
        distinct: similarity from which a passage is a copy of a negative that the pair has, and is
            passed over; None takes copies too. Not of `sweep`, whose methods share a search.
        exclude: ``exclusions(dataset, near_duplicates)``, when the caller has it already.
        progress: show a bar.
    Returns:
        A table with the columns of ``SCHEMA``; rows of one pair stand together, by rising rank.
        ``rank`` is the place among the candidates that the method allows, counting those that a
        shift drops. A pair for which too few candidates are left has fewer rows: ``provenance``
        counts them. Two calls with the same arguments give the same table.
    Raises:
        NvretError: no pair to mine for, or an argument out of its range.
    """
    if distinct is not None:
        scorer, exclude = _prepared(dataset, teacher, near_duplicates, exclude, progress)
        teacher = Distinct(scorer, dataset.passages, distinct)
    return sweep(
        dataset, teacher, [method], num_negatives, sampling, seed,
        ceiling_positive=ceiling_positive, negative_positives=negative_positives,
        near_duplicates=near_duplicates, skip=skip, min_score=min_score,
        exclude=exclude, progress=progress,
    )[0]  # fmt: skip


def sweep(
    dataset: RetrievalDataset,
    teacher: str | teachers.Teacher | teachers.Scorer,
    methods: Sequence[Method],
    num_negatives: int = 4,
    sampling: Sampling = TopK(),  # noqa: B008 (frozen)
    seed: int = 0,
    *,
    ceiling_positive: Literal["own", "lowest"] = "own",
    negative_positives: Literal["literal", "safe"] = "literal",
    near_duplicates: float | None = 0.8,
    skip: int = 0,
    min_score: float | None = None,
    exclude: list[np.ndarray] | None = None,
    progress: bool = True,
) -> list[pa.Table]:
    """`mine` for several methods, or several thresholds of one, with one search for all of them.

    Returns:
        for each method the table that `mine` gives.
    """
    check_choice("ceiling_positive", ceiling_positive, ("own", "lowest"))
    check_choice("negative_positives", negative_positives, ("literal", "safe"))
    if num_negatives < 1 or skip < 0:
        raise NvretError(f"num_negatives is {num_negatives}, skip {skip}; expected 1 or 0 and more")
    if len(dataset.pairs[0]) == 0:
        raise NvretError(
            f"{dataset.name}: no query has a positive, so there is nothing to mine for"
        )
    depth = sampling.depth(num_negatives)
    scorer, exclude = _prepared(dataset, teacher, near_duplicates, exclude, progress)
    pairs = _Pairs.of(dataset, scorer, exclude, seed)
    literal = negative_positives == "literal"
    if literal:
        _warn_of_negative_positives(dataset.name, pairs.scores, methods)
    facts = {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "teacher": scorer.name,
        "teacher_fingerprint": scorer.fingerprint,
        "prompts": getattr(scorer, "prompts", None),
        "num_negatives": num_negatives,
        "sampling": {"name": sampling.name, **dataclasses.asdict(sampling)},
        "seed": seed,
        "ceiling_positive": ceiling_positive,
        "negative_positives": negative_positives,
        "near_duplicates": near_duplicates,
        "skip": skip,
        "min_score": min_score,
        "distinct": getattr(scorer, "threshold", None),
        "pairs": len(pairs.scores),
        "positives_below_zero": int((pairs.scores < 0).sum()),
    }
    ranking = [method for method in methods if not isinstance(method, RandomNegatives)]
    limiting = pairs.lowest if ceiling_positive == "lowest" else pairs.scores
    ceilings = [method.ceiling(limiting, safe=not literal) for method in ranking]
    asked = pairs.queries, ranking, ceilings, depth, pairs.exclude, skip
    ranked = iter(rank(scorer, *asked, progress=progress))
    if ranking and (approximation := getattr(scorer, "approximation", lambda _: None)(depth)):
        facts["search"] = approximation
    tables = []
    for method in methods:
        if isinstance(method, RandomNegatives):
            chosen = _random(pairs, scorer, dataset.corpus.num_rows, num_negatives)
        else:
            found = next(ranked)
            if min_score is not None:
                ids, scores = found
                ids[scores < min_score], scores[scores < min_score] = -1, -np.inf
            chosen = _sampled(found, pairs.keys, num_negatives, sampling, method.skip + skip)
        tables.append(_table(dataset, scorer.name, pairs, method, chosen, num_negatives, facts))
    return tables


def _prepared(
    dataset: RetrievalDataset,
    teacher: str | teachers.Teacher | teachers.Scorer,
    near_duplicates: float | None,
    exclude: list[np.ndarray] | None,
    progress: bool,
) -> tuple[teachers.Scorer, list[np.ndarray]]:
    """The scorer and the exclusions, which are looked for while the teacher reads the texts."""
    if exclude is not None:
        return teachers.prepare(teacher, dataset, progress=progress), exclude
    machine.free_memory()  # of reading the texts, which may have been files
    found = machine.beside(exclusions, dataset, near_duplicates)
    scorer = teachers.prepare(teacher, dataset, progress=progress)
    exclude = found.result()
    machine.free_memory()
    return scorer, exclude


def exclusions(dataset: RetrievalDataset, near_duplicates: float | None = 0.8) -> list[np.ndarray]:
    """For each query, the sorted corpus rows that may never be its negatives.

    These are its labelled positives, the passages that have the same text as one of them or nearly
    so, and passages that are the query itself. "Same" ignores case, punctuation and spacing.
    """
    plain, positives = normalised(dataset.passages), np.unique(dataset.pairs[1])
    asked = normalised(dataset.query_texts)
    wanted = pa.chunked_array([*plain.take(pa.array(positives)).chunks, *asked.chunks])
    same_text: dict[str, list[int]] = defaultdict(list)
    for row in pc.indices_nonzero(pc.is_in(plain, wanted)).tolist():
        same_text[plain[row].as_py()].append(row)
    copies = {row: same_text[plain[row].as_py()] for row in positives.tolist()}
    if near_duplicates is not None:
        left, right = near_copies(plain, positives, threshold=near_duplicates)
        for row, twin in zip(positives[left].tolist(), right.tolist(), strict=True):
            copies[row] = [*copies[row], twin]
    every = (
        [*(c for row in rows.tolist() for c in copies[row]), *same_text.get(query, [])]
        for query, rows in zip(asked.to_pylist(), dataset.positives, strict=True)
    )
    return [np.array(sorted(set(some)), np.int64) for some in every]


class Candidates(NamedTuple):
    """The first candidates of each pair, in rank order.

    ids: (P, K) int64 rows of the corpus, -1 where there are fewer.
    scores: (P, K) float32, -inf there.
    """

    ids: np.ndarray
    scores: np.ndarray


def rank(
    scorer: teachers.Scorer,
    query_rows: np.ndarray,
    methods: Sequence[Method],
    ceilings: Sequence[np.ndarray],
    depth: int,
    exclude: Sequence[np.ndarray],
    skip: int = 0,
    *,
    progress: bool = True,
) -> list[Candidates]:
    """For each method the first ``depth`` candidates of each pair, after the ranks that it skips.

    Args:
        scorer: the teacher.
        query_rows: (P,) the pairs' queries.
        methods, ceilings: M methods, and the (P,) ceilings that each of them sets.
        depth: K.
        exclude: for each pair the rows of the corpus that are no candidates.
        skip: ranks that are skipped beside those of the method.
    """
    if not methods:
        return []
    needed = max(method.skip for method in methods) + skip + depth
    loosest = np.max(ceilings, axis=0)
    spare = SPARE if len(methods) > 1 else 0
    shared = _top_k(scorer, query_rows, needed + spare, loosest, exclude, progress)
    ranked = []
    for method, ceiling in zip(methods, ceilings, strict=True):
        first, own = (shared.scores >= ceiling[:, None]).sum(1), method.skip + skip
        columns = first[:, None] + np.arange(own, own + depth)
        inside = columns < shared.ids.shape[1]
        columns = np.where(inside, columns, 0)
        ids = np.where(inside, np.take_along_axis(shared.ids, columns, 1), -1)
        scores = np.where(inside, np.take_along_axis(shared.scores, columns, 1), -np.inf)
        # Cut off by the end of the ranking and not by the end of the corpus
        short = np.flatnonzero(~inside[:, -1] & (shared.ids[:, -1] >= 0))
        if len(short):
            again = _top_k(
                scorer, query_rows[short], own + depth, ceiling[short],
                [exclude[pair] for pair in short], progress,
            )  # fmt: skip
            ids[short], scores[short] = again.ids[:, own:], again.scores[:, own:]
        ranked.append(Candidates(ids, scores))
    return ranked


def _top_k(
    scorer: teachers.Scorer,
    query_rows: np.ndarray,
    k: int,
    ceiling: np.ndarray,
    exclude: Sequence[np.ndarray],
    progress: bool,
) -> Candidates:
    limits = None if np.isposinf(ceiling).all() else ceiling
    result = scorer.top_k(query_rows, k, limits, exclude, progress=progress)
    return Candidates(result.ids.numpy(), result.scores.numpy())


class _Pairs(NamedTuple):
    """The P (query, positive) pairs of a data set, and what all methods need of them."""

    queries: np.ndarray  # (P,) rows
    scores: np.ndarray  # (P,) float32, the teacher's, of the positives
    exclude: list[np.ndarray]  # corpus rows that are no candidates of a pair
    keys: np.ndarray  # (P,) uint64, state of each pair's random stream

    @classmethod
    def of(
        cls,
        dataset: RetrievalDataset,
        scorer: teachers.Scorer,
        exclude: Sequence[np.ndarray],
        seed: int,
    ) -> _Pairs:
        queries, positives = dataset.pairs
        scores = scorer.pair_scores(queries, positives)
        keys = pair_keys(*dataset.pair_ids.values(), seed)
        return cls(queries, scores, [exclude[row] for row in queries], keys)

    @property
    def lowest(self) -> np.ndarray:
        """(P,) the score of the lowest positive of a pair's query."""
        lowest = np.full(self.queries.max() + 1, np.inf, np.float32)
        np.minimum.at(lowest, self.queries, self.scores)
        return lowest[self.queries]


class _Chosen(NamedTuple):
    """(P, num_negatives) rows of the corpus (-1: none), their ranks and scores."""

    ids: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray


def _random(pairs: _Pairs, scorer: teachers.Scorer, passages: int, num_negatives: int) -> _Chosen:
    ids = draw_rows(pairs.keys, passages, num_negatives, pairs.exclude)
    ranks = np.broadcast_to(np.arange(1, num_negatives + 1), ids.shape)
    pair, column = np.nonzero(ids >= 0)
    scores = np.full(ids.shape, -np.inf, np.float32)
    scores[pair, column] = scorer.pair_scores(pairs.queries[pair], ids[pair, column])
    return _Chosen(ids, ranks, scores)


def _sampled(
    candidates: Candidates, keys: np.ndarray, num_negatives: int, sampling: Sampling, skip: int
) -> _Chosen:
    columns = np.broadcast_to(np.arange(num_negatives), (len(keys), num_negatives))
    if isinstance(sampling, SampledTopK):
        noise = gumbel_noise(keys, candidates.ids.shape[1])
        columns = draw(candidates.scores, noise, num_negatives, sampling)
    ids = np.take_along_axis(candidates.ids, columns, 1)
    scores = np.take_along_axis(candidates.scores, columns, 1)
    return _Chosen(ids, columns + skip + 1, scores)


def _table(
    dataset: RetrievalDataset,
    teacher: str,
    pairs: _Pairs,
    method: Method,
    chosen: _Chosen,
    num_negatives: int,
    facts: dict[str, Any],
) -> pa.Table:
    """The table of one method, with its provenance."""
    columns = dataset.pair_ids | {"positive_score": pairs.scores, "teacher": teacher}
    table = negatives.assemble(dataset, columns | {"method": str(method)}, *chosen)
    filled = (chosen.ids >= 0).sum(1)
    facts = facts | {
        "method": method.record,
        "pairs_short": int((filled < num_negatives).sum()),
        "pairs_empty": int((filled == 0).sum()),
        "negatives_missing": int((num_negatives - filled).sum()),
    }
    return table.replace_schema_metadata({"nvret": json.dumps(facts, sort_keys=True)})


def _warn_of_negative_positives(
    name: str, pos_scores: np.ndarray, methods: Sequence[Method]
) -> None:
    below_zero = int((pos_scores < 0).sum())
    if below_zero and any(method.scales_with_positive for method in methods):
        logger.warning(
            "%s: %d of %d positives score below 0, where the ceiling score * perc lies above the "
            "positive; negative_positives='safe' avoids it",
            name,
            below_zero,
            len(pos_scores),
        )
