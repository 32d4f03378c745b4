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

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from nvret.io import tabular
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

    The scores are in the order of the texts, or missing altogether; ``key`` is an id of the record,
    ``corpus`` that of the passages, in a layout that has them.
    """

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    positive_scores: Sequence[float] = ()
    negative_scores: Sequence[float] = ()
    key: str | None = None
    corpus: str | None = None


class Layout(NamedTuple):
    """How a record is read, and what is left of it.

    Attributes:
        row: of a record.
        lists: columns whose lists have a value for each negative; of other records none is left.
        places: where in these lists the negatives stand; default: they are all.
        ids: whether its queries and passages are ids.
        grouped: whether a row is one text, so that rows of one query belong together.
    """

    name: str
    row: Callable[[Record], Row]
    lists: Sequence[str] = ()
    places: Callable[[Record], Sequence[int]] | None = None
    ids: bool = False
    grouped: bool = False

    def read(self, record: Record | str) -> Row | str:
        """The record's row, or why it has none."""
        if isinstance(record, str):
            return record
        try:
            row = self.row(record)
            if not all(isinstance(part, list | tuple) for part in row[1:5]):
                return "expected lists of texts and of scores"
            texts = row.query, *row.positives, *row.negatives
            return row if all(isinstance(text, str | None) for text in texts) else "expected texts"
        except KeyError as error:
            return f"no column {error}"
        except (TypeError, ValueError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"[:80]

    def without(self, record: Record, dropped: set[int]) -> Record | None:
        """The record less some of its negatives; None where nothing is left."""
        lists = {key: record[key] for key in self.lists if isinstance(record.get(key), list)}
        if not lists:
            return None
        places = self.places(record) if self.places else range(len(record[self.lists[0]]))
        gone = {places[number] for number in dropped}
        if len(gone) == len(places):
            return None
        return record | {k: [x for i, x in enumerate(v) if i not in gone] for k, v in lists.items()}


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
        first = next((one for one in records(pieces(path)[0]) if isinstance(one, dict)), None)
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

    def first(known: Sequence[str], default: str | None = None) -> str | None:
        return next((name for name in known if name in there), default)

    query, texts = first(QUERIES, names[0] if names else ""), first(TEXTS)
    negatives = [name for name in names if name.startswith("negative")]
    if {"query_id", "positive_id", "negative_id"} <= there:
        return Layout("nvret", _ours, ids=True, grouped=True)
    if {"pos_doc", "neg_doc"} <= there:
        by_id = bool({"question_id", "corpus_id"} & there) or "query" not in there
        return Layout("automodel", _automodel, ["neg_doc"], ids=by_id)
    if {"query_id", "document_ids", "scores"} <= there:
        return _scored("scored-lists", "query_id", "document_ids", ids=True)
    if {"positive_passages", "negative_passages"} <= there:
        return Layout("tevatron", _tevatron, ["negative_passages"])
    if {"pos", "neg"} <= there:
        return Layout("flagembedding", _flagembedding, ["neg", "neg_scores", "neg_id"])
    if texts and "labels" in there:
        return _labeled(query, texts)
    if texts and "label" in there:
        return Layout("labeled-pair", partial(_labeled_pair, query, texts), grouped=True)
    if texts and "scores" in there and not negatives:
        return _scored("scored-texts", query, texts, ids=False)
    positive = first(POSITIVES)
    if negatives and (positive or len(names) > 1):
        read = partial(_tuple, query, positive or names[1], negatives)
        return Layout("tuple", read, negatives if len(negatives) == 1 else ())
    return None


def _ours(record: Record) -> Row:
    scores = [record.get("positive_score")], [record.get("score")]
    given = () if [None] in scores else scores
    return Row(record["query_id"], [record["positive_id"]], [record["negative_id"]], *given)


def _automodel(record: Record) -> Row:
    ids, scores = [], []
    for key in ("pos_doc", "neg_doc"):
        listed = [record[key]] if isinstance(record[key], str) else record[key]
        listed = [one if isinstance(one, dict) else {"id": one} for one in listed]
        ids.append([str(one["id"]) for one in listed])
        own = [one.get("score") for one in listed]
        scores.append(_scores(own))
    names = (record.get(name) for name in ("question_id", "corpus_id"))
    return Row(
        str(record.get("question", record.get("query"))), *ids, *scores,
        *(None if name is None else str(name) for name in names),
    )  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether it is a number that float32 can be asked to hold: JSON has longer ones."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**127)


def _scores(values: list) -> list:
    """None of some where there are others is a mistake for others to find; of all, no scores."""
    return [] if all(value is None for value in values) else values


def _scored(name: str, query: str, documents: str, *, ids: bool) -> Layout:
    def read(record: Record) -> Row:
        text, (first, *others), (own, *rest) = (record[key] for key in (query, documents, "scores"))
        if ids:  # numbers are ids too
            text, first, *others = map(str, (text, first, *others))
        return Row(text, [first], others, [own], rest)

    lists = [documents, "scores"]
    return Layout(name, read, lists, lambda record: range(1, len(record[documents])), ids)


def _tevatron(record: Record) -> Row:
    positives, negatives = (
        [f"{one.get('title') or ''} {one['text']}".strip() for one in record[key]]
        for key in ("positive_passages", "negative_passages")
    )
    return Row(record["query"], positives, negatives)


def _flagembedding(record: Record) -> Row:
    scores = [record.get(key) or () for key in ("pos_scores", "neg_scores")]
    return Row(record["query"], record["pos"], record["neg"], *scores)


def _labeled(query: str, texts: str) -> Layout:
    def chosen(record: Record, values: Sequence, positive: bool) -> list:
        own = zip(values, record["labels"], strict=False)
        return [value for value, label in own if (label > 0.5) == positive]

    def read(record: Record) -> Row:
        listed = record[texts], _scores(record.get("scores") or [])
        return Row(record[query], *(chosen(record, some, own) for some in listed
                                    for own in (True, False)))  # fmt: skip

    def places(record: Record) -> list[int]:
        return chosen(record, range(len(record["labels"])), False)

    return Layout("labeled-list", read, [texts, "labels", "scores"], places)


def _labeled_pair(query: str, text: str, record: Record) -> Row:
    parts = [[record[text]], []] if record["label"] > 0.5 else [[], [record[text]]]
    return Row(record[query], *parts)


def _tuple(query: str, positive: str, negatives: Sequence[str], record: Record) -> Row:
    texts = [record.get(name) for name in negatives]
    texts = list(itertools.chain(*(x if isinstance(x, list) else [x] for x in texts)))
    own, *rest = record.get("scores") or [None]
    return Row(record[query], [record[positive]], texts, *([[own], rest] if rest else ()))


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


def records(piece: Piece) -> Iterator[Record | str]:
    """Each record of a piece; where there is none, why.

    A line belongs to the piece that its first byte is in.
    """
    if piece.path.suffix == ".parquet":
        with arrow_errors(piece.path), pq.ParquetFile(piece.path) as file:
            groups = list(range(piece.start, piece.stop))
            for batch in file.iter_batches(BATCH, row_groups=groups):
                yield from batch.to_pylist()
        return
    if _is_whole(piece.path):
        rows = whole_json(piece.path)["data"]
        yield from (row if isinstance(row, dict) else "no JSON object" for row in rows)
        return
    with piece.path.open("rb") as stream:
        if piece.start:
            stream.seek(piece.start - 1)
            stream.readline()  # the rest of the line before
        while stream.tell() < piece.stop and (line := stream.readline()):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"no JSON: {str(error)[:80]}"
            else:
                yield value if isinstance(value, dict) else "no JSON object"


def read(path: Path) -> Iterator[Record | str]:
    """The records of all pieces."""
    return itertools.chain.from_iterable(map(records, pieces(path)))


def _is_whole(path: Path) -> bool:
    """Whether a .json is one value; many are JSON Lines of another name."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as stream, contextlib.suppress(ValueError, RecursionError):
        first = json.loads(stream.readline())
        return not isinstance(first, dict) or "data" in first
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


def corpora(path: Path) -> list[Path] | None:
    """The folders of passages that an Automodel object names; None where a file names none.

    Those of a relative path lie beside the file.
    """
    listed = whole_json(path).get("corpus") if _is_whole(path) else None
    listed = [listed] if isinstance(listed, dict | str) else listed
    if not isinstance(listed, list) or not listed:
        return None
    names = [one.get("path") if isinstance(one, dict) else one for one in listed]
    return [path.parent / str(name) for name in names]


def write(rows: Iterable[Record], like: Path, output: Path) -> None:
    """Records in the kind of file, and with the columns, of another one; in one step."""
    with atomic_file(output) as target:
        if _is_whole(like):
            text = json.dumps(whole_json(like) | {"data": list(rows)})
            target.write_text(text + "\n", encoding="utf-8")
        elif like.suffix == ".parquet":
            schema = pq.read_schema(like)
            if not tabular.write_parquet(tabular.tables(rows, schema, BATCH), target):
                pq.write_table(schema.empty_table(), target, compression="zstd")
        else:
            tabular.write_lines(rows, target)
