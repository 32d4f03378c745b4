"""Hard-negative mining: five methods as a ceiling and a skip, three ways to sample.

A teacher ranks the corpus for each (query, positive) pair. A method says which candidates may be
negatives: those that score strictly below a *ceiling*, after *skip* leading ranks are dropped. In
the two positive-aware methods the ceiling depends on the positive's own score, since a candidate
that the teacher places as high as the positive is likely to be a positive that nobody labelled.

Source: NV-Retriever, arXiv 2407.15831, section 3.1 (methods) and section 4.3 (sampling).

[candidates] The candidates that each method allows, from one search for a whole sweep of methods.

Under any ceiling the best candidates are a run of the ranking without one: those above it are its
first ranks. So a ranking that is a little deeper than a method needs answers every method whose
ceiling cuts off no more than that, and only the pairs that it cuts deeper are searched again, under
their own ceiling.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

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
from nvret.negatives import SCHEMA, load, provenance, save
from nvret.sampling import (
    SampledTopK,
    Sampling,
    Top1PlusSampled,
    TopK,
    draw,
    draw_rows,
    gumbel_noise,
    pair_keys,
)
from nvret.teachers import Scorer
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import near_duplicate_pairs, normalise

SPARE = 64  # ranks of a shared search beyond those that a method needs


class Candidates(NamedTuple):
    """The first candidates of each pair, in rank order.

    ids: (P, K) int64 rows of the corpus, -1 where there are fewer.
    scores: (P, K) float32, -inf there.
    """

    ids: np.ndarray
    scores: np.ndarray


def rank(
    scorer: Scorer,
    query_rows: np.ndarray,
    methods: Sequence[Method],
    ceilings: Sequence[np.ndarray],
    depth: int,
    banned: Sequence[np.ndarray],
    *,
    progress: bool = True,
) -> list[Candidates]:
    """For each method the first ``depth`` candidates of each pair, after the ranks that it skips.

    Args:
        scorer: the teacher.
        query_rows: (P,) the pairs' queries.
        methods, ceilings: M methods, and the (P,) ceilings that each of them sets.
        depth: K.
        banned: for each pair the rows of the corpus that are no candidates.
    """
    if not methods:
        return []
    needed = max(method.skip for method in methods) + depth
    loosest = np.max(ceilings, axis=0)
    spare = SPARE if len(methods) > 1 else 0
    shared = _top_k(scorer, query_rows, needed + spare, loosest, banned, progress)
    found = []
    for method, ceiling in zip(methods, ceilings, strict=True):
        first = (shared.scores >= ceiling[:, None]).sum(1)
        columns = first[:, None] + np.arange(method.skip, method.skip + depth)
        inside = columns < shared.ids.shape[1]
        columns = np.where(inside, columns, 0)
        ids = np.where(inside, np.take_along_axis(shared.ids, columns, 1), -1)
        scores = np.where(inside, np.take_along_axis(shared.scores, columns, 1), -np.inf)
        # Cut off by the end of the ranking and not by the end of the corpus
        short = np.flatnonzero(~inside[:, -1] & (shared.ids[:, -1] >= 0))
        if len(short):
            again = _top_k(
                scorer,
                query_rows[short],
                method.skip + depth,
                ceiling[short],
                [banned[pair] for pair in short],
                progress,
            )
            ids[short], scores[short] = again.ids[:, method.skip :], again.scores[:, method.skip :]
        found.append(Candidates(ids, scores))
    return found


def _top_k(
    scorer: Scorer,
    query_rows: np.ndarray,
    k: int,
    ceiling: np.ndarray,
    banned: Sequence[np.ndarray],
    progress: bool,
) -> Candidates:
    unlimited = np.isposinf(ceiling).all()
    result = scorer.top_k(query_rows, k, None if unlimited else ceiling, banned, progress=progress)
    return Candidates(result.ids.numpy(), result.scores.numpy())


__all__ = [
    "SCHEMA",
    "NaiveTopK",
    "RandomNegatives",
    "SampledTopK",
    "Top1PlusSampled",
    "TopK",
    "TopKAbs",
    "TopKMarginPos",
    "TopKPercPos",
    "TopKShifted",
    "load",
    "mine",
    "provenance",
    "save",
    "sweep",
]

logger = logging.getLogger("nvret")


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
    return sweep(
        dataset,
        teacher,
        [method],
        num_negatives,
        sampling,
        seed,
        ceiling_positive=ceiling_positive,
        negative_positives=negative_positives,
        near_duplicates=near_duplicates,
        exclude=exclude,
        progress=progress,
    )[0]


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
    exclude: list[np.ndarray] | None = None,
    progress: bool = True,
) -> list[pa.Table]:
    """`mine` for several methods, or several thresholds of one, with one search for all of them.

    Returns:
        for each method the table that `mine` gives.
    """
    if num_negatives < 1:
        raise NvretError(f"num_negatives is {num_negatives}, expected at least 1")
    query_rows, positive_rows = dataset.pairs
    if len(query_rows) == 0:
        raise NvretError(
            f"{dataset.name}: no query has a positive, so there is nothing to mine for"
        )
    depth = sampling.depth(num_negatives)
    scorer = teachers.prepare(teacher, dataset, progress=progress)
    pos_scores = scorer.pair_scores(query_rows, positive_rows)
    below_zero = int((pos_scores < 0).sum())
    literal = negative_positives == "literal"
    if below_zero and literal and any(method.scales_with_positive for method in methods):
        logger.warning(
            "%s: %d of %d positives score below 0, where the ceiling score * perc lies above the "
            "positive; negative_positives='safe' avoids it",
            dataset.name,
            below_zero,
            len(pos_scores),
        )
    limiting = pos_scores
    if ceiling_positive == "lowest":
        limiting = _lowest_of_query(query_rows, pos_scores)
    if exclude is None:
        exclude = exclusions(dataset, near_duplicates)
    banned = [exclude[row] for row in query_rows]
    pairs = {
        "query_id": dataset.queries["id"].take(pa.array(query_rows)),
        "positive_id": dataset.corpus["id"].take(pa.array(positive_rows)),
    }
    keys = pair_keys(*pairs.values(), seed)
    facts = {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "teacher": scorer.name,
        "teacher_fingerprint": scorer.fingerprint,
        "num_negatives": num_negatives,
        "sampling": {"name": sampling.name, **dataclasses.asdict(sampling)},
        "seed": seed,
        "ceiling_positive": ceiling_positive,
        "negative_positives": negative_positives,
        "near_duplicates": near_duplicates,
        "pairs": len(query_rows),
        "positives_below_zero": below_zero,
    }

    ranking = [method for method in methods if not isinstance(method, RandomNegatives)]
    ceilings = [method.ceiling(limiting, safe=not literal) for method in ranking]
    ranked = iter(rank(scorer, query_rows, ranking, ceilings, depth, banned, progress=progress))
    found = getattr(scorer, "approximation", lambda _: None)(depth) if ranking else None
    if found:
        facts["search"] = found
    tables = []
    for method in methods:
        if isinstance(method, RandomNegatives):
            ids = draw_rows(keys, dataset.corpus.num_rows, num_negatives, banned)
            ranks = np.broadcast_to(np.arange(1, num_negatives + 1), ids.shape)
            pair, column = np.nonzero(ids >= 0)
            scores = np.full(ids.shape, -np.inf, np.float32)
            scores[pair, column] = scorer.pair_scores(query_rows[pair], ids[pair, column])
        else:
            allowed = next(ranked)
            chosen = np.broadcast_to(np.arange(num_negatives), (len(keys), num_negatives))
            if isinstance(sampling, SampledTopK):
                noise = gumbel_noise(keys, depth)
                chosen = draw(allowed.scores, noise, num_negatives, sampling)
            ids = np.take_along_axis(allowed.ids, chosen, 1)
            scores = np.take_along_axis(allowed.scores, chosen, 1)
            ranks = chosen + method.skip + 1
        columns = {**pairs, "positive_score": pos_scores, "teacher": scorer.name}
        table = negatives.assemble(dataset, columns | {"method": str(method)}, ids, ranks, scores)
        filled = (ids >= 0).sum(1)
        said = {
            **facts,
            "method": method.record,
            "pairs_short": int((filled < num_negatives).sum()),
            "pairs_empty": int((filled == 0).sum()),
            "negatives_missing": int((num_negatives - filled).sum()),
        }
        tables.append(table.replace_schema_metadata({"nvret": json.dumps(said, sort_keys=True)}))
    return tables


def exclusions(dataset: RetrievalDataset, near_duplicates: float | None = 0.8) -> list[np.ndarray]:
    """For each query, the sorted corpus rows that may never be its negatives.

    These are its labelled positives, the passages that have the same text as one of them or nearly
    so, and passages that are the query itself. "Same" ignores case, punctuation and spacing.
    """
    same_text: dict[str, list[int]] = defaultdict(list)
    plain = [normalise(text) for text in dataset.passages]
    for row, text in enumerate(plain):
        same_text[text].append(row)
    positives = np.unique(dataset.pairs[1])
    copies = {row: same_text[plain[row]] for row in positives.tolist()}
    if near_duplicates is not None:
        left, right, _ = near_duplicate_pairs(
            [dataset.passages[row] for row in positives],
            dataset.passages,
            threshold=near_duplicates,
        )
        for row, twin in zip(positives[left].tolist(), right.tolist(), strict=True):
            copies[row] = [*copies[row], twin]
    return [
        np.unique(
            [
                *(c for row in rows.tolist() for c in copies[row]),
                *same_text.get(normalise(query), []),
            ]
        ).astype(np.int64)
        for query, rows in zip(dataset.query_texts, dataset.positives, strict=True)
    ]


def _lowest_of_query(query_rows: np.ndarray, pos_scores: np.ndarray) -> np.ndarray:
    lowest = np.full(query_rows.max() + 1, np.inf, np.float32)
    np.minimum.at(lowest, query_rows, pos_scores)
    return lowest[query_rows]
