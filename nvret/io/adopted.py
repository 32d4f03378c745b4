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
    positives: list[dict[int, None]] = []
    for number, row in enumerate(rows, 1):
        texts = (*row.positives, *row.negatives)
        for text in (row.query, *texts):
            tabular.check_unicode(text, f"{path}: list {number}", text[:60])
        first, *_ = (passages.setdefault(text, len(passages)) for text in texts)
        query = queries.setdefault(row.query, len(queries))
        if query == len(positives):
            positives.append({})
        positives[query][first] = None
    if not queries:
        raise NvretError(f"{path}: no record, expected some")
    return from_texts(path.stem, list(passages), list(queries), list(map(list, positives)))


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
    queries, passages = _known(dataset, layout.ids)
    scores: dict[tuple[int, int], dict[int, float]] = {}
    own_scores: dict[tuple[int, int], float] = {}
    for number, row in enumerate(candidates.rows(path, layout, scored=scorer is None), 1):
        try:
            pair = queries[row.query], passages[row.positives[0]]
            places = [passages[text] for text in row.negatives]
        except KeyError as error:
            raise NvretError(f"{path}: list {number}: {error.args[0][:60]!r} is not in "
                             f"{dataset.name}") from None  # fmt: skip
        given = row.negative_scores if scorer is None else [np.nan] * len(places)
        scores.setdefault(pair, {}).update(zip(places, given, strict=True))
        own_scores.setdefault(pair, row.positive_scores[0] if scorer is None else np.nan)
    columns = [
        (*pair, negative, rank, score, own_scores[pair])
        for pair, listed in scores.items()
        for rank, (negative, score) in enumerate(listed.items(), 1)
    ]
    if not columns:
        raise NvretError(f"{path}: no negative, expected some")
    query, positive, negative, ranks, *values = map(np.array, zip(*columns, strict=True))
    values = [some.astype(np.float32) for some in values]
    if scorer is not None:
        values = [scorer.pair_scores(query, rows) for rows in (negative, positive)]
    facts = {
        "method": {"name": layout.name, "parameters": {}}, "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint, "num_negatives": int(ranks.max()),
        "teacher": "unknown" if scorer is None else scorer.name, "pairs": len(dataset.pairs[0]),
        "ceiling_positive": "own", "negative_positives": "literal", "file": Path(path).name,
    }  # fmt: skip
    queries, passages = (part["id"] for part in (dataset.queries, dataset.corpus))
    columns = [
        queries.take(query), passages.take(positive), passages.take(negative), ranks, *values,
        [facts["teacher"]] * len(ranks), [layout.name] * len(ranks),
    ]  # fmt: skip
    made = pa.table(columns, SCHEMA.names).cast(SCHEMA)
    return made.replace_schema_metadata({"nvret": json.dumps(facts, sort_keys=True)})


def _known(dataset: RetrievalDataset, by_id: bool) -> Iterator[dict[str, int]]:
    """Rows of queries, then of passages, by id or by text; of equal texts the first."""
    texts = dataset.query_texts, dataset.passages
    if by_id:
        texts = (part["id"].to_pylist() for part in (dataset.queries, dataset.corpus))
    return ({text: row for row, text in reversed(list(enumerate(some)))} for some in texts)


def _names(path: Path, kind: str) -> inputs.Columns:
    """The columns of a part: query_id and query, or id and text."""
    there = tabular.names(path)
    ids = next((name for name in (f"{kind}_id", "_id", "id") if name in there), None)
    text = next((name for name in (kind, "text") if name in there), "text")
    return inputs.Columns(ids, text)
