"""A toy set with graded labels, a label of 0, equal passages and a query without an answer."""

from __future__ import annotations

import pyarrow as pa

from nvret.data import RetrievalDataset

LENGTHS = {"query_max_length": 32, "passage_max_length": 64, "progress": False}
PASSAGES = {
    "moon": ("The Moon", "Apollo 11 landed on the Moon in July 1969 with two astronauts."),
    "mars": ("", "The rover Curiosity has been driving across a crater on Mars since 2012."),
    "bread": ("Bread", "Sourdough bread rises slowly because wild yeast ferments the flour."),
    "beer": ("", "Brewers add hops to the boiling wort, then yeast turns sugar into alcohol."),
    "wine": ("", "Wine is made of grapes that are pressed and fermented in barrels."),
    "piano": ("", "A concert grand piano has eighty-eight keys and three pedals."),
    "violin": ("Violin", "The violin is tuned in fifths and played with a bow of horsehair."),
    "twin": ("", "A concert grand piano has eighty-eight keys and three pedals."),
}
QUERIES = {
    "q1": "Which mission brought people to the Moon?",
    "q2": "What makes dough rise?",
    "q3": "How are alcoholic drinks made?",
    "q4": "How many keys does a piano have?",
    "q5": "Who won the elections?",
}
QRELS = [
    ("q3", "beer", 2),
    ("q1", "moon", 1),
    ("q1", "mars", 0),
    ("q2", "bread", 1),
    ("q3", "wine", 1),
    ("q3", "bread", 1),
    ("q4", "piano", 1),
]


def make_dataset(passages, queries, qrels, name="toy"):
    ids, texts = list(passages), list(passages.values())
    corpus = {"id": ids, "title": [t[0] for t in texts], "text": [t[1] for t in texts]}
    columns = zip(*qrels, strict=True) if qrels else ([], [], [])
    types = (pa.string(), pa.string(), pa.int32())
    named = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
    return RetrievalDataset(
        name=name,
        corpus=pa.table(corpus),
        queries=pa.table({"id": list(queries), "text": list(queries.values())}),
        qrels=pa.table(named, names=["query_id", "corpus_id", "score"]),
    )
