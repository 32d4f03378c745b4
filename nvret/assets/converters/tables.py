"""What every data converter ends with: three tables, and a record of what was left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nvret.utils import near_duplicates


@dataclass(frozen=True)
class Converted:
    """The tables of a data set, and ``cleaning``: {step, unit, kept, dropped, why} in order."""

    corpus: pa.Table
    queries: pa.Table
    qrels: pa.Table
    cleaning: list[dict[str, Any]]


@dataclass
class Cleaning:
    """The steps so far."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, unit: str, before: int, after: int, why: str) -> None:
        self.steps.append(
            {"step": step, "unit": unit, "kept": after, "dropped": before - after, "why": why}
        )


@dataclass(frozen=True)
class Judgement:
    """One labelled pair as the source has it; score 0 is "judged, and not relevant"."""

    question: str
    text: str
    title: str = ""
    score: int = 1


def one_line(text: str) -> str:
    """Single spaces, none at the ends.

    >>> one_line(" a  b\\n")
    'a b'
    """
    return " ".join(text.split())


def content_id(prefix: str, *parts: str) -> str:
    """An id that depends on the text alone, so that it is the same in every build.

    >>> content_id("nq-q", "who wrote emma")
    'nq-q-7b533278e214'
    """
    digest = hashlib.sha256("\n".join(parts).encode("utf-8"))
    return f"{prefix}-{digest.hexdigest()[:12]}"


def assemble(
    name: str,
    judgements: Sequence[Judgement],
    cleaning: Cleaning,
    *,
    others: Sequence[str] = (),
    cluster_threshold: float = 0.5,
) -> Converted:
    """Merge what is the same, number it, and find the near-duplicate clusters.

    Two passages, or two questions, are the same when `near_duplicates.normalise` makes them
    equal; the first spelling stays, and rows keep the order of the source. A question that was
    asked about several passages becomes one query with several positives. A question without a
    relevant passage is no query.

    Args:
        others: passages without a title that no judgement is about.
        cluster_threshold: share of the shorter text's word trigrams that the other text must have
            for the two to be near-duplicates.
    """
    passages: dict[tuple[str, str], Judgement] = {}
    spelling: dict[str, str] = {}
    scores: dict[tuple[str, tuple[str, str]], int] = {}
    for j in judgements:
        passage = (near_duplicates.normalise(j.title), near_duplicates.normalise(j.text))
        passages.setdefault(passage, j)
        query = spelling.setdefault(near_duplicates.normalise(j.question), j.question)
        scores[query, passage] = max(scores.get((query, passage), 0), j.score)
    for text in others:
        passages.setdefault(
            (near_duplicates.normalise(""), near_duplicates.normalise(text)), Judgement("", text)
        )
    titles, texts = [j.title for j in passages.values()], [j.text for j in passages.values()]
    ids = {key: content_id(f"{name}-p", j.title, j.text) for key, j in passages.items()}
    cleaning.add(
        "merge equal passages",
        "passages",
        len({(j.title, j.text) for j in judgements} | {("", text) for text in others}),
        len(passages),
        "the same words with other spaces, punctuation or capitals",
    )
    answered = {query for (query, _), score in scores.items() if score > 0}
    queries = {
        query: content_id(f"{name}-q", query) for query in spelling.values() if query in answered
    }
    spellings = len({j.question for j in judgements})
    cleaning.add(
        "merge equal questions",
        "questions",
        spellings,
        len(spelling),
        "the same words: one query with every positive of its copies",
    )
    if len(queries) < len(spelling):
        cleaning.add(
            "questions without a relevant passage",
            "questions",
            len(spelling),
            len(queries),
            "all of their judgements are 0; the passages stay",
        )
    qrels = [
        (queries[query], ids[passage], score)
        for (query, passage), score in scores.items()
        if query in queries
    ]
    labels = near_duplicates.clusters(texts, threshold=cluster_threshold, measure="overlap")
    cleaning.add(
        "near-duplicate clusters",
        "passages",
        len(passages),
        len(passages),
        f"passages that share {cluster_threshold:.0%} of the shorter one's word trigrams "
        f"stand in one cluster: {len(set(labels.tolist()))} clusters; none is dropped",
    )
    cleaning.add("result", "queries", len(queries), len(queries), "")
    cleaning.add("result", "passages", len(passages), len(passages), "")
    return Converted(
        corpus=pa.table(
            {
                "id": pa.array(ids.values(), pa.string()),
                "title": pa.array(titles, pa.string()),
                "text": pa.array(texts, pa.string()),
                "cluster": pa.array(labels, pa.int32()),
            }
        ),
        queries=pa.table(
            {
                "id": pa.array(queries.values(), pa.string()),
                "text": pa.array(queries.keys(), pa.string()),
            }
        ),
        qrels=pa.table(
            {
                "query_id": pa.array([query for query, _, _ in qrels], pa.string()),
                "corpus_id": pa.array([passage for _, passage, _ in qrels], pa.string()),
                "score": pa.array([score for _, _, score in qrels], pa.int32()),
            }
        ),
        cleaning=cleaning.steps,
    )
