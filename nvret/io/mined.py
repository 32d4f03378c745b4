"""Files of mined negatives in the layouts that trainers read, whoever wrote them.

| layout | columns |
|---|---|
| ``nvret`` | query_id, positive_id, negative_id, score, positive_score; a row a negative |
| ``tuple`` | a query, a positive, and ``negative`` or ``negative_1``, …; perhaps ``scores`` |
| ``labeled-list`` | a query, ``document`` and ``labels``, both lists; perhaps ``scores`` |
| ``labeled-pair`` | a query, a text and its ``label``; a row a text |
| ``flagembedding`` | query, pos, neg; perhaps pos_scores, neg_scores |
| ``tevatron`` | query, positive_passages, negative_passages |
| ``automodel`` | question, pos_doc, neg_doc, with ids of texts; or query, with the texts |
| ``scored-lists`` | query_id, document_ids, scores; the first is the positive; texts by id |
| ``scored-texts`` | a query, ``document`` (a list) and ``scores``; likewise, with texts |

A file is read in pieces, so that several processes share the work and none holds all texts; a
``.json`` of one object with a list ``data``, as Automodel has it, in one piece.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nvret.io.tabular import arrow_errors
from nvret.utils.errors import NvretError, check_file
from nvret.utils.store import atomic_file

PIECE = 1 << 26  # bytes of a JSON Lines file that are a piece, by and large
BATCH = 2048  # rows of Parquet that are Python's objects at a time
QUERIES = ("anchor", "query", "question", "sentence1", "query_text")
POSITIVES = ("positive", "answer", "pos", "sentence2", "response", "passage")
TEXTS = ("document", "documents", "passage", "answer", "text", "response")
Record = dict[str, Any]


class Row(NamedTuple):
    """A query with positives and negatives: texts, or ids where the layout has no texts.

    The scores are in the order of the texts, or missing altogether.
    """

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    positive_scores: Sequence[float] = ()
    negative_scores: Sequence[float] = ()


class Layout(NamedTuple):
    """How a record is read, and what is left of it.

    Attributes:
        ids: whether its queries and passages are ids.
        grouped: whether a row is one text, so that rows of one query belong together.
        row: of a record.
        without: the record less the negatives at these places; None where nothing is left.
    """

    name: str
    ids: bool
    grouped: bool
    row: Callable[[Record], Row]
    without: Callable[[Record, set[int]], Record | None]


class Piece(NamedTuple):
    """A part of a file: row groups of Parquet, or bytes of JSON Lines."""

    path: Path
    start: int
    stop: int


def layout_of(path: Path) -> Layout:
    """The layout of a file, by its columns.

    Raises:
        NvretError: no such file, one that cannot be read, or columns of no known layout.
    """
    check_file(path, "a file of mined negatives")
    if path.suffix == ".parquet":
        with arrow_errors(path):
            names = pq.read_schema(path).names
    else:
        first = next((r for _, r in records(pieces(path)[0]) if isinstance(r, dict)), None)
        if first is None:
            raise NvretError(f"{path}: no JSON object in its first piece, expected one a line")
        names = list(first)
    found = _layout(names)
    if found is None:
        raise NvretError(
            f"{path}: no known layout has the columns {', '.join(names)}; expected a query with a "
            "positive and negative_1 …, document and labels, pos and neg, positive_passages and "
            "negative_passages, pos_doc and neg_doc, or those of nvret"
        )
    return found


def _layout(names: Sequence[str]) -> Layout | None:
    there = set(names)
    query = next((name for name in QUERIES if name in there), names[0] if names else "")
    if {"query_id", "positive_id", "negative_id"} <= there:
        return Layout("nvret", True, True, _ours, _whole)
    if {"pos_doc", "neg_doc"} <= there:
        by_id = bool({"question_id", "corpus_id"} & there) or "query" not in there
        return Layout("automodel", by_id, False, _automodel, _list_of("neg_doc"))
    if {"query_id", "document_ids", "scores"} <= there:
        return Layout("scored-lists", True, False, *_scored("query_id", "document_ids"))
    if {"positive_passages", "negative_passages"} <= there:
        return Layout("tevatron", False, False, _tevatron, _list_of("negative_passages"))
    if {"pos", "neg"} <= there:
        return Layout("flagembedding", False, False, _flagembedding, _flag_without)
    texts = next((name for name in TEXTS if name in there), None)
    if texts and "labels" in there:
        read, left = _labeled(query, texts)
        return Layout("labeled-list", False, False, read, left)
    if texts and "label" in there:
        return Layout(
            "labeled-pair", False, True,
            lambda r: Row(r[query], *([[r[texts]], []] if r["label"] > 0.5 else [[], [r[texts]]])),
            _whole,
        )  # fmt: skip
    negatives = [name for name in names if name.startswith("negative")]
    if texts and "scores" in there and not negatives:
        return Layout("scored-texts", False, False, *_scored(query, texts))
    positive = next((name for name in POSITIVES if name in there), None)
    if negatives and (positive or len(names) > 1):
        read, left = _tuple(query, positive or names[1], negatives)
        return Layout("tuple", False, False, read, left)
    return None


def _whole(record: Record, places: set[int]) -> Record | None:
    return None if places else record


def _list_of(key: str) -> Callable[[Record, set[int]], Record | None]:
    def without(record: Record, places: set[int]) -> Record | None:
        kept = [one for place, one in enumerate(record[key]) if place not in places]
        return record | {key: kept} if kept else None

    return without


def _ours(record: Record) -> Row:
    scores = [record.get("positive_score")], [record.get("score")]
    given = scores if None not in (scores[0][0], scores[1][0]) else ()
    return Row(record["query_id"], [record["positive_id"]], [record["negative_id"]], *given)


def _automodel(record: Record) -> Row:
    listed = (record[key] for key in ("pos_doc", "neg_doc"))
    positives, negatives = (
        [one if isinstance(one, dict) else {"id": one} for one in some]
        for some in ([some] if isinstance(some, str) else some for some in listed)
    )
    scores = [[one.get("score") for one in some] for some in (positives, negatives)]
    scores = [[] if None in some else some for some in scores]
    ids = [[str(one["id"]) for one in some] for some in (positives, negatives)]
    return Row(str(record.get("question", record.get("query"))), *ids, *scores)


def _scored(query: str, documents: str) -> tuple[Callable, Callable]:
    def read(record: Record) -> Row:
        first, *others = record[documents]
        own, *rest = record["scores"]
        if query == "query_id":  # numbers are ids too
            first, *others = map(str, (first, *others))
        text = record[query]
        return Row(str(text) if query == "query_id" else text, [first], others, [own], rest)

    def without(record: Record, places: set[int]) -> Record | None:
        left_out = {place + 1 for place in places}
        lists = {
            key: [one for place, one in enumerate(record[key]) if place not in left_out]
            for key in (documents, "scores")
        }
        return record | lists if len(lists["scores"]) > 1 else None

    return read, without


def _tevatron(record: Record) -> Row:
    positives, negatives = (
        [f"{one.get('title') or ''} {one['text']}".strip() for one in record[key]]
        for key in ("positive_passages", "negative_passages")
    )
    return Row(record["query"], positives, negatives)


def _flagembedding(record: Record) -> Row:
    scores = [record.get(key) or () for key in ("pos_scores", "neg_scores")]
    return Row(record["query"], record["pos"], record["neg"], *scores)


def _flag_without(record: Record, places: set[int]) -> Record | None:
    keys = [key for key in ("neg", "neg_scores", "neg_id") if record.get(key)]
    kept = {key: [x for i, x in enumerate(record[key]) if i not in places] for key in keys}
    return record | kept if kept["neg"] else None


def _labeled(query: str, texts: str) -> tuple[Callable, Callable]:
    def read(record: Record) -> Row:
        parts: list[list] = [[], [], [], []]
        scores = record.get("scores") or itertools.repeat(None)
        for text, label, score in zip(record[texts], record["labels"], scores, strict=False):
            kind = 0 if label > 0.5 else 1
            parts[kind].append(text)
            if score is not None:
                parts[2 + kind].append(score)
        return Row(record[query], *parts)

    def without(record: Record, places: set[int]) -> Record | None:
        order = [i for i, label in enumerate(record["labels"]) if not label > 0.5]
        gone = {order[place] for place in places}
        if len(gone) == len(order):
            return None
        keys = [key for key in (texts, "labels", "scores") if record.get(key)]
        return record | {k: [x for i, x in enumerate(record[k]) if i not in gone] for k in keys}

    return read, without


def _tuple(query: str, positive: str, negatives: list[str]) -> tuple[Callable, Callable]:
    def read(record: Record) -> Row:
        texts = [record.get(name) for name in negatives]
        texts = list(itertools.chain(*(x if isinstance(x, list) else [x] for x in texts)))
        own, *rest = record.get("scores") or [None]
        given = ([own], rest) if rest else ()
        return Row(record[query], [record[positive]], texts, *given)

    def without(record: Record, places: set[int]) -> Record | None:
        """A list is shortened; of fixed columns the trainer needs all."""
        if len(negatives) > 1 or not isinstance(record[negatives[0]], list):
            return None if places else record
        kept = [x for i, x in enumerate(record[negatives[0]]) if i not in places]
        return record | {negatives[0]: kept} if kept else None

    return read, without


def pieces(path: Path) -> list[Piece]:
    """The parts of a file, in their order."""
    if path.suffix == ".parquet":
        with arrow_errors(path):
            groups = pq.ParquetFile(path).num_row_groups
        return [Piece(path, number, number + 1) for number in range(groups)]
    if _is_whole(path):
        return [Piece(path, 0, 1)]
    size = path.stat().st_size
    starts = range(0, max(size, 1), PIECE)
    return [Piece(path, start, min(start + PIECE, size)) for start in starts]


def records(piece: Piece) -> Iterator[tuple[int, Record | str]]:
    """Each record of a piece with its number in it, from 0; where there is none, why.

    A line belongs to the piece that its first byte is in.
    """
    if piece.path.suffix == ".parquet":
        with arrow_errors(piece.path), pq.ParquetFile(piece.path) as file:
            groups = list(range(piece.start, piece.stop))
            batches = file.iter_batches(BATCH, row_groups=groups)
            yield from enumerate(row for batch in batches for row in batch.to_pylist())
        return
    if _is_whole(piece.path):
        rows = whole_json(piece.path)["data"]
        yield from enumerate(row if isinstance(row, dict) else "no JSON object" for row in rows)
        return
    with piece.path.open("rb") as stream:
        if piece.start:
            stream.seek(piece.start - 1)
            stream.readline()  # the rest of the line before
        number = 0
        while stream.tell() < piece.stop and (line := stream.readline()):
            if not line.strip():
                continue
            try:
                value: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                value = f"no JSON: {str(error)[:80]}"
            yield number, value if isinstance(value, dict | str) else "no JSON object"
            number += 1


def _is_whole(path: Path) -> bool:
    """Whether a .json is one value; many are JSON Lines of another name."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as stream:
        first = stream.readline()
    try:
        return "data" in (value := json.loads(first)) or not isinstance(value, dict)
    except (ValueError, RecursionError, TypeError):
        return True


def whole_json(path: Path) -> Record:
    """One JSON object with a list ``data``; a list alone is that list."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NvretError(f"{path}: no JSON: {str(error)[:80]}") from error
    value = {"data": value} if isinstance(value, list) else value
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise NvretError(f"{path}: expected a JSON object with a list 'data'")
    return value


def write(rows: Iterable[Record], like: Path, output: Path) -> None:
    """Records in the kind of file, and with the columns, of another one; in one step."""
    with atomic_file(output) as partial:
        if _is_whole(like):
            text = json.dumps(whole_json(like) | {"data": list(rows)}, ensure_ascii=True)
            partial.write_text(text + "\n", encoding="utf-8")
            return
        if like.suffix != ".parquet":
            with partial.open("w", encoding="utf-8") as stream:
                for row in rows:
                    line = json.dumps(row, ensure_ascii=False)
                    whole = (
                        line.encode("utf-8", "ignore").decode() == line
                    )  # no half surrogate pair
                    stream.write((line if whole else json.dumps(row)) + "\n")
            return
        schema, rows = pq.read_schema(like), iter(rows)
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            while some := list(itertools.islice(rows, BATCH)):
                writer.write_table(pa.Table.from_pylist(some, schema))
