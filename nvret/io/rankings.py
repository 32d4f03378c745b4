"""What a teacher ranks, written with its scores, so that any rule can be applied to it later.

A row is a pair of query and positive: the positive, then the candidates, best first, each with its
score. That is the layout of scored lists on the hub, whose readers take the first as the positive.
A TREC run has a ranking for each query, positives at their own places.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nvret.data import RetrievalDataset
from nvret.io import tabular
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


def _kept(
    stage: str, inputs: dict[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> list[np.ndarray]:
    """Arrays, ordered by name: computed now, or found in the cache from an earlier run."""

    def build(folder: Path) -> None:
        for name, array in compute().items():
            np.save(folder / f"{name}.npy", array)

    files = sorted(store.stage(stage, inputs, build).glob("*.npy"))
    return [np.load(file, allow_pickle=False) for file in files]


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
    number = len(dataset.pairs[0])
    for start in range(0, number, PART):
        stop = min(start + PART, number)
        queries, positives = (rows[start:stop] for rows in dataset.pairs)
        asked = [exclude[row] for row in queries]
        inputs = {
            "dataset": dataset.fingerprint,
            "teacher": scorer.fingerprint,
            "depth": depth,
            "pairs": [start, stop],
            "excluded": store.fingerprint([some.tolist() for some in asked]),
            "recipe": recipes.versions("vectors", "search", "bm25"),
        }

        def search(queries: np.ndarray = queries, asked: list = asked) -> dict[str, np.ndarray]:
            found = scorer.top_k(queries, depth, None, asked, progress=progress)
            return {"ids": found.ids.numpy(), "scores": found.scores.numpy()}

        ids, scores = _kept("rankings", inputs, search)
        yield Part(queries, positives, scorer.pair_scores(queries, positives), ids, scores)


def rescored(
    dataset: RetrievalDataset, parts: Iterator[Part], judge: Any, key: str
) -> Iterator[Part]:
    """The same candidates with the scores of a model that reads query and passage together.

    Its scores set the order, and the ceilings of whoever mines from them. Each part is kept in the
    cache.

    Args:
        judge: of `nvret.analysis.judges`, which needs no positive beside the passage.
        key: what the model is.
    """
    queries, passages = dataset.query_texts, dataset.passages
    for part in parts:
        inputs = {"model": key, "dataset": dataset.fingerprint,
                  "recipe": recipes.versions("judges"),
                  "ranking": store.fingerprint(part.queries, part.positives, part.ids)}  # fmt: skip

        def score(part: Part = part) -> dict[str, np.ndarray]:
            everything = np.column_stack([part.positives, part.ids])
            row, column = np.nonzero(everything >= 0)
            scores = np.full(everything.shape, -np.inf, np.float32)
            asked = [queries[part.queries[one]] for one in row]
            texts = [passages[one] for one in everything[row, column]]
            scores[row, column] = judge.scores(asked, texts, texts).values
            return {"scores": scores}

        (scores,) = _kept("rescored", inputs, score)
        own, scores = scores[:, 0], scores[:, 1:]
        order = np.lexsort((part.ids, -scores), axis=1)
        ids, scores = (np.take_along_axis(values, order, 1) for values in (part.ids, scores))
        yield part._replace(positive_scores=own, ids=ids, scores=scores)


def write(
    dataset: RetrievalDataset, parts: Iterator[Part], path: Path, name: str, facts: dict[str, Any]
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
            return _tables(dataset, parts, partial / "scores.parquet", facts)
    with store.atomic_file(path) as partial:
        if name == "trec":
            return _run(dataset, parts, partial, path.suffix == ".gz", facts)
        return _tables(dataset, parts, partial, facts, texts=name == "labeled-list")


def _tables(
    dataset: RetrievalDataset,
    parts: Iterator[Part],
    path: Path,
    facts: dict[str, Any],
    *,
    texts: bool = False,
) -> int:
    """Parquet, a row group for each part."""
    names, known = ("query_id", "document_ids"), (dataset.queries["id"], dataset.corpus["id"])
    if texts:
        names, known = ("query", "document"), (dataset.query_texts, dataset.passages)
        known = [pa.chunked_array([some], pa.large_string()) for some in known]
    counts = []

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            passages = np.column_stack([part.positives, part.ids])
            scores = np.column_stack([part.positive_scores, part.scores])
            there = passages >= 0
            ends = pa.array(np.concatenate([[0], there.sum(1).cumsum()]), pa.int64())
            queries, documents = (
                values.take(pa.array(rows)).combine_chunks()
                for values, rows in zip(known, (part.queries, passages[there]), strict=True)
            )
            lists = documents, pa.array(scores[there], pa.float32())
            lists = [pa.LargeListArray.from_arrays(ends, values) for values in lists]
            table = pa.table([queries, *lists], [*names, "scores"])
            counts.append(int((part.ids >= 0).sum()))
            yield table.replace_schema_metadata({"nvret": json.dumps(facts)})

    tabular.write_parquet(tables(), path)
    return sum(counts)


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
    if spaced := next((name for name in (*queries, *corpus) if len(name.split()) != 1), None):
        raise NvretError(f"id {spaced!r} has a blank, which a TREC run cannot hold")
    header = {
        "method": {"retrieval": [{"name": facts["teacher"], "method": facts["kind"]}]},
        "implementation": {"software": [{"name": "nvret", "version": facts["version"]}]},
        "data": {"test_collection": {"name": dataset.name, "fingerprint": dataset.fingerprint}},
    }
    lines = yaml.safe_dump(header, sort_keys=False).splitlines()
    pairs = (Part(*values) for part in parts for values in zip(*part, strict=True))
    with (gzip.open if zipped else open)(path, "wt", encoding="utf-8") as stream:
        for line in ("ir_metadata.start", *lines, "ir_metadata.end"):
            stream.write(f"# {line}\n")
        for query, group in itertools.groupby(pairs, key=lambda pair: pair.queries):
            own = list(group)  # they differ in the positive alone
            there = own[0].ids >= 0
            ids = np.append([pair.positives for pair in own], own[0].ids[there])
            scores = np.append([pair.positive_scores for pair in own], own[0].scores[there])
            count += int(there.sum())
            order = np.lexsort((ids, -scores))
            for place, row in enumerate(order.tolist(), start=1):
                name = corpus[int(ids[row])]
                stream.write(f"{queries[query]} Q0 {name} {place} {scores[row]:.9g} {tag}\n")
    return count
