"""What every data converter ends with: three tables, and a record of what was left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nvret.utils.near_duplicates import clusters, normalise

Step = dict[str, Any]
_CORPUS = pa.schema(
    {"id": pa.string(), "title": pa.string(), "text": pa.string(), "cluster": pa.int32()}
)
_QUERIES = pa.schema({"id": pa.string(), "text": pa.string()})
_QRELS = pa.schema({"query_id": pa.string(), "corpus_id": pa.string(), "score": pa.int32()})


@dataclass(frozen=True)
class Converted:
    """The tables of a data set, and ``cleaning``: the steps that led to them, in order."""

    corpus: pa.Table
    queries: pa.Table
    qrels: pa.Table
    cleaning: list[Step]


@dataclass(frozen=True)
class Judgement:
    """One labelled pair as the source has it; score 0 is "judged, and not relevant"."""

    question: str
    text: str
    title: str = ""
    score: int = 1

    @property
    def passage(self) -> tuple[str, str]:
        """Title and text as they are compared."""
        return normalise(self.title), normalise(self.text)


def step(name: str, unit: str, before: Sized, after: Sized, why: str = "") -> Step:
    """A step of the cleaning.

    >>> step("short", "passages", ["a", "moon"], ["moon"], "one letter")
    {'step': 'short', 'unit': 'passages', 'kept': 1, 'dropped': 1, 'why': 'one letter'}
    """
    dropped = len(before) - len(after)
    return {"step": name, "unit": unit, "kept": len(after), "dropped": dropped, "why": why}


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
    cleaning: list[Step],
    *,
    others: Sequence[str] = (),
    cluster_threshold: float = 0.5,
) -> Converted:
    """Merge what is the same, name it, and find the near-duplicate clusters.

    Two passages, or two questions, are the same when `near_duplicates.normalise` makes them
    equal; the first spelling stays, and rows keep the order of the source. A question without a
    relevant passage is no query. ``others`` are passages without a title that no judgement is
    about; near-duplicates share ``cluster_threshold`` of the shorter text's word trigrams.
    """
    passages: dict[tuple[str, str], Judgement] = {}
    questions: dict[str, str] = {}
    scores: dict[tuple[str, tuple[str, str]], int] = {}
    for judgement in judgements:
        question, passage = normalise(judgement.question), judgement.passage
        passages.setdefault(passage, judgement)
        questions.setdefault(question, judgement.question)
        scores[question, passage] = max(scores.get((question, passage), 0), judgement.score)
    unjudged = [Judgement("", text) for text in others]
    for judgement in unjudged:
        passages.setdefault(judgement.passage, judgement)
    answered = {question for (question, _), score in scores.items() if score > 0}
    query_ids = {
        question: content_id(f"{name}-q", text)
        for question, text in questions.items()
        if question in answered
    }
    passage_ids = {key: content_id(f"{name}-p", j.title, j.text) for key, j in passages.items()}
    texts = [judgement.text for judgement in passages.values()]
    labels = clusters(texts, threshold=cluster_threshold, measure="overlap").tolist()

    distinct_passages = {
        (judgement.title, judgement.text) for judgement in (*judgements, *unjudged)
    }
    distinct_questions = {judgement.question for judgement in judgements}
    spelling = "the same words with other spaces, punctuation or capitals"
    copies = "the same words: one query with every positive of its copies"
    cleaning = [
        *cleaning,
        step("merge equal passages", "passages", distinct_passages, passages, spelling),
        step("merge equal questions", "questions", distinct_questions, questions, copies),
    ]
    if len(query_ids) < len(questions):
        why = "all of their judgements are 0; the passages stay"
        unanswered = "questions without a relevant passage"
        cleaning.append(step(unanswered, "questions", questions, query_ids, why))
    why = (
        f"passages that share {cluster_threshold:.0%} of the shorter one's word trigrams "
        f"stand in one cluster: {len(set(labels))} clusters; none is dropped"
    )
    cleaning += [
        step("near-duplicate clusters", "passages", passages, passages, why),
        step("result", "queries", query_ids, query_ids),
        step("result", "passages", passages, passages),
    ]
    corpus = [
        (passage_ids[key], judgement.title, judgement.text, label)
        for (key, judgement), label in zip(passages.items(), labels, strict=True)
    ]
    queries = [(query, questions[question]) for question, query in query_ids.items()]
    qrels = [
        (query_ids[question], passage_ids[passage], score)
        for (question, passage), score in scores.items()
        if question in query_ids
    ]
    parts = _table(corpus, _CORPUS), _table(queries, _QUERIES), _table(qrels, _QRELS)
    return Converted(*parts, cleaning)


def _table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table(dict(zip(schema.names, zip(*rows, strict=True), strict=True)), schema=schema)
