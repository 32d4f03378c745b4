"""What another tool has mined or ranked, as a data set and a table of negatives of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.data import RetrievalDataset, from_texts
from nvret.io import candidates, inputs, mined, tabular
from nvret.negatives import SCHEMA
from nvret.teachers import Scorer
from nvret.utils.errors import NvretError


def load_dataset(path: Path) -> RetrievalDataset:
    """The data set that the candidates themselves make: the first of each list is a positive.

    Raises:
        NvretError: a run, or lists of ids without the two other parts: they have no texts.
    """
    path = Path(path)
    if not path.is_dir():
        layout = None if path.suffix in candidates.RUNS else mined.layout_of(path)
        if layout is None or layout.ids:
            raise NvretError(f"{path} holds ids alone, expected your data beside it (--corpus, …)")
        return _of_texts(path, candidates.rows(path, layout, scored=False))
    lists = candidates.read(path)
    documents, questions = (candidates.part(path, name) for name in ("documents", "queries"))
    corpus = inputs.texts(documents, title=True, columns=_names(documents, "document"))
    queries = inputs.texts(questions, title=False, columns=_names(questions, "query"))
    firsts = pc.take(lists.documents, pa.array(lists.starts[:-1]))
    judged = pa.table({"query_id": lists.queries, "corpus_id": firsts})
    judged = judged.group_by(judged.column_names, use_threads=False).aggregate([])
    judged = judged.append_column("score", pa.array(np.ones(len(judged), np.int32)))
    queries = inputs.only_judged(queries, judged, str(path))
    return RetrievalDataset(path.stem, corpus, queries, judged)


def _of_texts(path: Path, rows: Iterator[mined.Row]) -> RetrievalDataset:
    """Equal texts are one query, or one passage."""
    queries: dict[str, int] = {}
    passages: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for number, row in enumerate(rows, 1):
        for text in (row.query, *row.positives, *row.negatives):
            tabular.check_unicode(text, f"{path}: list {number}", text[:60])
        query = queries.setdefault(row.query, len(queries))
        first, *_ = (
            passages.setdefault(text, len(passages)) for text in (*row.positives, *row.negatives)
        )
        pairs[query, first] = None
    if not queries:
        raise NvretError(f"{path}: no record, expected some")
    positives: list[list[int]] = [[] for _ in queries]
    for query, passage in pairs:
        positives[query].append(passage)
    return from_texts(path.stem, list(passages), list(queries), positives)


def table(path: Path, dataset: RetrievalDataset, scorer: Scorer | None = None) -> pa.Table:
    """Anybody's mined negatives as a table of nvret's, in the order that their file has.

    Args:
        path: of any layout of `nvret.io.mined`.
        scorer: of the data set, which scores negatives that the file has no scores of.
    Raises:
        NvretError: what is not in the data set, or a passage without a score where no scorer is
            given; the record is named.
    """
    layout = mined.layout_of(path)
    rows = list(candidates.rows(path, layout, scored=scorer is None))
    known = _known(dataset, layout.ids)
    listed: dict[tuple[int, int], dict[int, float]] = {}
    for number, row in enumerate(rows, 1):
        try:
            pair = known[0][row.query], known[1][row.positives[0]]
            places = [known[1][text] for text in row.negatives]
        except KeyError as error:
            raise NvretError(f"{path}: list {number}: {error.args[0][:60]!r} is not in "
                             f"{dataset.name}") from None  # fmt: skip
        own = listed.setdefault(pair, {})
        scores = row.negative_scores if scorer is None else [np.nan] * len(places)
        own |= dict(zip(places, scores, strict=True))
        own.setdefault(-1, row.positive_scores[0] if scorer is None else np.nan)
    pairs = [(q, p, n) for (q, p), own in listed.items() for n in own if n >= 0]
    if not pairs:
        raise NvretError(f"{path}: no negative, expected some")
    query, positive, negative = np.array(pairs).T
    if scorer is None:
        values = np.array([listed[q, p][n] for q, p, n in pairs], np.float32)
        own_scores = np.array([listed[q, p][-1] for q, p, _ in pairs], np.float32)
    else:
        values, own_scores = (scorer.pair_scores(query, some) for some in (negative, positive))
    counts = [len(own) - 1 for own in listed.values()]
    ranks = np.concatenate([np.arange(1, count + 1) for count in counts])
    ids = {name: part["id"].to_numpy().astype(object) for name, part in
           (("query", dataset.queries), ("passage", dataset.corpus))}  # fmt: skip
    facts = {
        "method": {"name": layout.name, "parameters": {}}, "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint, "num_negatives": max(counts),
        "teacher": "unknown" if scorer is None else scorer.name, "pairs": len(dataset.pairs[0]),
        "ceiling_positive": "own", "negative_positives": "literal", "file": Path(path).name,
    }  # fmt: skip
    columns = [
        ids["query"][query], ids["passage"][positive], ids["passage"][negative], ranks, values,
        own_scores, [facts["teacher"]] * len(pairs), [layout.name] * len(pairs),
    ]  # fmt: skip
    columns = [pa.array(some, kind) for some, kind in zip(columns, SCHEMA.types, strict=True)]
    made = pa.table(columns, schema=SCHEMA)
    return made.replace_schema_metadata({"nvret": json.dumps(facts, sort_keys=True)})


def _known(dataset: RetrievalDataset, by_id: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of queries and passages, by id or by text; of equal texts the first."""
    if by_id:
        texts = dataset.queries["id"].to_pylist(), dataset.corpus["id"].to_pylist()
    else:
        texts = dataset.query_texts, dataset.passages
    first, second = ({text: row for row, text in reversed(list(enumerate(some)))} for some in texts)
    return first, second


def _names(path: Path, kind: str) -> inputs.Columns:
    """The columns of a part: query_id and query, or id and text."""
    there = tabular.names(path)
    ids = next((name for name in (f"{kind}_id", "_id", "id") if name in there), None)
    text = next((name for name in (kind, "text") if name in there), "text")
    return inputs.Columns(ids, text)
