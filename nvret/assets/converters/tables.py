"""What every data converter ends with: three tables, and a record of what was left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import pandas as pd
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
    rows = pd.DataFrame([*judgements, *(Judgement("", text) for text in others)])
    rows["query"] = rows["question"].map(normalise)
    rows["passage"] = rows["title"].map(normalise) + "\n" + rows["text"].map(normalise)
    judged = rows[: len(judgements)]
    scores = judged.groupby(["query", "passage"], sort=False, as_index=False)["score"].max()

    passages, questions = rows.drop_duplicates("passage"), judged.drop_duplicates("query")
    queries = questions[questions["query"].isin(scores.loc[scores["score"] > 0, "query"])]
    queries = queries.assign(id=[content_id(f"{name}-q", text) for text in queries["question"]])
    parts = zip(passages["title"], passages["text"], strict=True)
    labels = clusters(passages["text"].tolist(), threshold=cluster_threshold, measure="overlap")
    passages = passages.assign(id=[content_id(f"{name}-p", *p) for p in parts], cluster=labels)

    spellings = rows[["title", "text"]].drop_duplicates()
    spelling = "the same words with other spaces, punctuation or capitals"
    copies = "the same words: one query with every positive of its copies"
    cleaning = [
        *cleaning,
        step("merge equal passages", "passages", spellings, passages, spelling),
        step("merge equal questions", "questions", judged["question"].unique(), questions, copies),
    ]
    if len(queries) < len(questions):
        why = "all of their judgements are 0; the passages stay"
        unanswered = "questions without a relevant passage"
        cleaning.append(step(unanswered, "questions", questions, queries, why))
    why = (
        f"passages that share {cluster_threshold:.0%} of the shorter one's word trigrams "
        f"stand in one cluster: {len(set(labels.tolist()))} clusters; none is dropped"
    )
    cleaning += [
        step("near-duplicate clusters", "passages", passages, passages, why),
        step("result", "queries", queries, queries),
        step("result", "passages", passages, passages),
    ]
    qrels = scores[scores["query"].isin(queries["query"])].assign(
        query_id=lambda table: table["query"].map(queries.set_index("query")["id"]),
        corpus_id=lambda table: table["passage"].map(passages.set_index("passage")["id"]),
    )
    return Converted(
        _table(passages, _CORPUS),
        _table(queries.drop(columns="text").rename(columns={"question": "text"}), _QUERIES),
        _table(qrels, _QRELS),
        cleaning,
    )


def _table(rows: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.table(rows[schema.names].to_dict("list"), schema=schema)
