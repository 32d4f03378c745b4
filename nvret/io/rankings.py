"""What a teacher ranks, written with its scores, so that any rule can be applied to it later.

A row is a pair of query and positive: the positive, then the candidates, best first, each with its
score. That is the layout of scored lists on the hub, whose readers take the first as the positive.
A TREC run has a ranking for each query, positives at their own places.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nvret.data import RetrievalDataset
from nvret.teachers import Scorer
from nvret.utils import recipes, store
from nvret.utils.errors import NvretError

PART = 8192  # queries of a search, whose result is kept: an interrupted run continues after them
FORMATS = ("scored-lists", "three-part", "labeled-list", "trec")


class Part(NamedTuple):
    """Rankings of some neighbouring pairs.

    Attributes:
        queries, positives: (B,) rows of the data set.
        positive_scores: (B,) float32.
        ids: (B, depth) rows of the corpus, -1 where there are fewer.
        scores: (B, depth) float32.
    """

    queries: np.ndarray
    positives: np.ndarray
    positive_scores: np.ndarray
    ids: np.ndarray
    scores: np.ndarray


def rank(
    dataset: RetrievalDataset,
    scorer: Scorer,
    depth: int,
    exclude: Sequence[np.ndarray],
    *,
    progress: bool = True,
) -> Iterator[Part]:
    """The first ``depth`` candidates of each pair, in the order of the data set's pairs.

    Each part is kept in the cache, so that the same call continues where another was stopped.

    Args:
        exclude: for each query the rows that are no candidates, as of `nvret.mining.exclusions`.
    """
    queries, positives = dataset.pairs
    for start in range(0, len(queries), PART):
        rows = slice(start, min(start + PART, len(queries)))
        asked = [exclude[row] for row in queries[rows]]
        inputs = {
            "dataset": dataset.fingerprint,
            "teacher": scorer.fingerprint,
            "depth": depth,
            "pairs": [rows.start, rows.stop],
            "excluded": store.fingerprint([some.tolist() for some in asked]),
            "recipe": recipes.versions("vectors", "search", "bm25"),
        }

        def build(folder: Path, rows: slice = rows, asked: list = asked) -> None:
            found = scorer.top_k(queries[rows], depth, None, asked, progress=progress)
            np.save(folder / "ids.npy", found.ids.numpy())
            np.save(folder / "scores.npy", found.scores.numpy())

        folder = store.stage("rankings", inputs, build)
        ids, scores = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("ids", "scores")
        )
        own = scorer.pair_scores(queries[rows], positives[rows])
        yield Part(queries[rows], positives[rows], own, ids, scores)


Read = Callable[[list[str], list[str]], np.ndarray]


def rescored(
    dataset: RetrievalDataset, parts: Iterator[Part], read: Read, key: str
) -> Iterator[Part]:
    """The same candidates with the scores of a model that reads query and passage together.

    Its scores set the order, and the ceilings of whoever mines from them. Each part is kept in the
    cache.

    Args:
        read: scores (P,) of P queries and passages, texts.
        key: what the model is.
    """
    queries, passages = dataset.query_texts, dataset.passages
    for part in parts:
        inputs = {"model": key, "dataset": dataset.fingerprint,
                  "recipe": recipes.versions("judges"),
                  "ranking": store.fingerprint(part.queries, part.positives, part.ids)}  # fmt: skip

        def build(folder: Path, part: Part = part) -> None:
            everything = np.column_stack([part.positives, part.ids])
            row, column = np.nonzero(everything >= 0)
            scores = np.full(everything.shape, -np.inf, np.float32)
            texts = [queries[part.queries[one]] for one in row]
            scores[row, column] = read(texts, [passages[one] for one in everything[row, column]])
            np.save(folder / "scores.npy", scores)

        folder = store.stage("rescored", inputs, build)
        scores = np.load(folder / "scores.npy", allow_pickle=False)
        own, scores = scores[:, 0], scores[:, 1:]
        order = np.lexsort((part.ids, -scores), axis=1)
        ids, scores = (np.take_along_axis(values, order, 1) for values in (part.ids, scores))
        yield Part(part.queries, part.positives, own, ids, scores)


def write(
    dataset: RetrievalDataset,
    parts: Iterator[Part],
    path: Path,
    name: str,
    facts: dict[str, Any],
) -> int:
    """Write rankings in one step.

    Args:
        name: one of ``FORMATS``.
        facts: for the metadata: the teacher, its fingerprint, the depth.
    Returns:
        how many candidates were written, positives not among them.
    Raises:
        NvretError: the file cannot be written.
    """
    if name == "three-part":
        with store.atomic_folder(path) as partial:
            if partial is None:
                raise NvretError(f"{path} exists, expected a folder to make")
            for kind, part, table, texts in (
                ("query", "queries", dataset.queries, dataset.query_texts),
                ("document", "documents", dataset.corpus, dataset.passages),
            ):
                # Its readers on the hub differ in what they call the text
                columns = dict.fromkeys((kind, "text"), pa.array(texts, pa.large_string()))
                columns = {f"{kind}_id": table["id"]} | columns
                pq.write_table(pa.table(columns), partial / f"{part}.parquet", compression="zstd")
            return _tables(parts, partial / "scores.parquet", _by_id(dataset), facts)
    with store.atomic_file(path) as partial:
        if name == "trec":
            return _run(dataset, parts, partial, path.suffix == ".gz", facts)
        rows = _by_id(dataset) if name == "scored-lists" else _by_text(dataset)
        return _tables(parts, partial, rows, facts)


Build = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


def _by_id(dataset: RetrievalDataset) -> Build:
    queries, corpus = dataset.queries["id"].combine_chunks(), dataset.corpus["id"].combine_chunks()
    return lambda query, passages: {
        "query_id": queries.take(pa.array(query)),
        "document_ids": corpus.take(pa.array(passages)),
    }


def _by_text(dataset: RetrievalDataset) -> Build:
    queries, corpus = dataset.query_texts, dataset.passages
    return lambda query, passages: {
        "query": pa.array([queries[row] for row in query], pa.large_string()),
        "document": pa.array([corpus[row] for row in passages], pa.large_string()),
    }


def _tables(parts: Iterator[Part], path: Path, build: Build, facts: dict[str, Any]) -> int:
    """Parquet, a row group for each part."""
    count, writer = 0, None
    try:
        for part in parts:
            passages = np.column_stack([part.positives, part.ids])
            scores = np.column_stack([part.positive_scores, part.scores])
            there = passages >= 0
            ends = np.concatenate([[0], there.sum(1).cumsum()])
            (first, queries), (second, documents) = build(part.queries, passages[there]).items()
            columns = {
                first: queries,
                second: pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), documents),
                "scores": pa.LargeListArray.from_arrays(
                    pa.array(ends, pa.int64()), pa.array(scores[there], pa.float32())
                ),
            }
            table = pa.table(columns).replace_schema_metadata({"nvret": json.dumps(facts)})
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            count += int((part.ids >= 0).sum())
    finally:
        if writer is not None:
            writer.close()
    return count


def _run(
    dataset: RetrievalDataset,
    parts: Iterator[Part],
    path: Path,
    zipped: bool,
    facts: dict[str, Any],
) -> int:
    """A TREC run: a query's positives stand where their scores place them."""
    queries, corpus = (table["id"].to_pylist() for table in (dataset.queries, dataset.corpus))
    tag, count = facts["teacher"].replace(" ", "-"), 0
    for names in (queries, corpus):
        if spaced := next((name for name in names if len(name.split()) != 1), None):
            raise NvretError(f"id {spaced!r} has a blank, which a TREC run cannot hold")
    with (gzip.open if zipped else open)(path, "wt", encoding="utf-8") as stream:
        header = {
            "method": {"retrieval": [{"name": facts["teacher"], "method": facts["kind"]}]},
            "implementation": {"software": [{"name": "nvret", "version": facts["version"]}]},
            "data": {"test_collection": {"name": dataset.name, "fingerprint": dataset.fingerprint}},
        }
        lines = yaml.safe_dump(header, sort_keys=False).splitlines()
        for line in ("ir_metadata.start", *lines, "ir_metadata.end"):
            stream.write(f"# {line}\n")
        for query, own in _by_query(parts):
            ids = np.concatenate([[part.positives for part in own], own[0].ids[own[0].ids >= 0]])
            scores = np.concatenate(
                [[part.positive_scores for part in own], own[0].scores[own[0].ids >= 0]]
            )
            count += len(ids) - len(own)
            order = np.lexsort((ids, -scores))
            for place, row in enumerate(order.tolist(), start=1):
                name = corpus[int(ids[row])]
                stream.write(f"{queries[query]} Q0 {name} {place} {scores[row]:.9g} {tag}\n")
    return count


def _by_query(parts: Iterator[Part]) -> Iterator[tuple[int, list[Part]]]:
    """For each query the rankings of its pairs, which differ in the positive alone."""
    own: list[Part] = []
    for part in parts:
        for row, query in enumerate(part.queries.tolist()):
            if own and own[0].queries != query:
                yield int(own[0].queries), own
                own = []
            own.append(Part(query, *(column[row] for column in part[1:])))
    if own:
        yield int(own[0].queries), own
