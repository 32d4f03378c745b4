"""Files of rows: columns of JSON Lines, Parquet, CSV or TSV, with the place of each row; writers.

Text files are read by Python's own parsers, Parquet by Arrow. Arrow's reader of JSON is many times
as fast but cannot name the line of an error, so it has the blocks in which it finds none.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import itertools
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError, check_file

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
LONGEST = 2**31 - 1  # characters of a field of CSV; the parser's own limit is 131,072
SURROGATE = re.compile("[\ud800-\udfff]")
PIECE = 1 << 23  # characters that are Python's objects at a time, by and large
NULL = re.compile(rb"\}[ \t\r]*null")  # between objects it makes Arrow's reader crash

Row = Iterator[tuple[Any, ...]]
Piece = dict[str, Sequence[Any]]


@dataclass(frozen=True)
class Rows:
    """Some columns of a piece of a file; a JSON object without the key gives None.

    ``lines`` has the line of each row that was read so far, from 1, of a JSON Lines file, and is
    empty for other files. ``start`` is the row of the file, from 0, that the piece begins with.
    """

    path: Path
    columns: Piece
    lines: Sequence[int] = field(default_factory=lambda: array("q"))
    start: int = 0

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def place(self, row: int) -> str:
        """Where a row of the file stands, for messages; they count from 1.

        >>> Rows(Path("a.jsonl"), {}, [1, 3]).place(1), Rows(Path("a.csv"), {}).place(1)
        ('a.jsonl:3', 'a.csv: row 2 below the header')
        """
        if self.lines:
            return f"{self.path}:{self.lines[row]}"
        below = " below the header" if self.path.suffix in (".csv", ".tsv") else ""
        return f"{self.path}: row {row + 1}{below}"

    def texts(self, name: str, *, ids: bool = False, null: str | None = None) -> list[str]:
        """A column of texts; `NvretError` names the first row that holds something else.

        Of ``ids`` whole numbers become texts, and none may be empty. ``null`` stands for what is
        missing.
        """
        wanted, values = "a non-empty string" if ids else "a string", []
        for row, value in enumerate(self.columns[name], self.start):
            if ids and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if value is None:
                value = null
            if not isinstance(value, str) or (ids and not value):
                raise NvretError(f"{self.place(row)}: {name!r} is {value!r}; expected {wanted}")
            if not value.isascii():
                check_unicode(value, self.place(row), name)
            values.append(value)
        return values

    def unique(self, name: str, table: pa.Table) -> None:
        """`NvretError` that names both rows of the file where a row of ``table`` stands twice."""
        if table.group_by(table.column_names).aggregate([]).num_rows == table.num_rows:
            return
        first: dict[tuple[str, ...], int] = {}
        for row, values in enumerate(zip(*table.to_pydict().values(), strict=True)):
            if (other := first.setdefault(values, row)) != row:
                before = f"line {self.lines[other]}" if self.lines else f"row {other + 1}"
                value = ", ".join(map(repr, values))
                raise NvretError(f"{self.place(row)}: {name} {value} stands in {before} too")


def check_unicode(text: str, place: str, name: str) -> None:
    """`NvretError` for half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NvretError(f"{place}: {name!r} cannot be written as UTF-8: {error}") from error


def names(path: Path) -> list[str]:
    """The columns of a file: those of the header, or the keys of the first JSON object."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        with arrow_errors(path):
            found = pq.read_schema(path).names
    elif suffix == ".jsonl":
        _, first = next(_objects(path, enumerate(_lines(path), start=1)), (0, None))
        if first is None:
            raise NvretError(f"{path}: empty; expected a JSON object in each line")
        found = list(first)
    else:
        found = next(_cells(path), [])
        if not found:
            raise NvretError(f"{path}: empty; expected a header and rows")
    if twice := [name for name in found if found.count(name) > 1]:
        raise NvretError(f"{path}: column {twice[0]!r} stands there more than once")
    return found


def read(path: Path, columns: Sequence[str], *, progress: bool = True) -> Iterator[Rows]:
    """These columns of a file, a piece at a time; those of CSV and TSV as texts.

    A field of a ``.csv`` may stand in quotes and then hold line breaks; in a ``.tsv`` a quote is a
    character like any other, as in BEIR's and MS MARCO's files. `NvretError` names the row that
    cannot be read, a file that has no rows, and one that changes meanwhile.
    """
    suffix, before, lines = _suffix(path), _state(path), array("q")
    if suffix == ".jsonl":
        pieces = _objects_of(path, columns, lines, progress)
    else:
        pieces = _pieces((_parquet if suffix == ".parquet" else _fields)(path, columns), columns)
    start = 0
    for piece in pieces:
        rows = Rows(path, piece, lines, start)
        yield rows
        start += len(rows)
    if _state(path) != before:
        raise NvretError(f"{path} has changed while it was read")
    if not start:
        raise NvretError(f"{path}: empty; expected rows")


def _pieces(rows: Row, columns: Sequence[str]) -> Iterator[Piece]:
    """Columns of as many rows at a time as make a piece."""
    size, piece = 0, []
    for row in rows:
        if size > PIECE:
            yield _columns(columns, piece)
            size, piece = 0, []
        piece.append(row)
        size += 64 + sum(len(value) for value in row if isinstance(value, (str, list)))
    if piece:
        yield _columns(columns, piece)


def _columns(names: Sequence[str], rows: Sequence[tuple]) -> Piece:
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def choose(path: Path, found: Sequence[str], wanted: Sequence[str], option: str) -> str:
    """The one column that has a wanted name; `NvretError` for none or several."""
    there = [name for name in wanted if name in found]
    if len(there) == 1:
        return there[0]
    if there:
        raise NvretError(f"{path}: both {' and '.join(map(repr, there))} could be meant; {option}")
    low = {name.lower(): name for name in found}
    near = [low[name] for key in wanted for name in difflib.get_close_matches(key.lower(), low)]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    listed = " or ".join(map(repr, wanted))
    raise NvretError(f"{path}: no column {listed}; it has {', '.join(found)}{hint}; {option}")


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise NvretError(f"{path}: unknown kind of file, expected {', '.join(SUFFIXES)}")
    _state(path)
    return path.suffix


def _state(path: Path) -> tuple[int, ...]:
    """What differs when a file is another one, or was written to."""
    status = check_file(path, "a file of rows")
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parquet(path: Path, columns: Sequence[str]) -> Row:
    with arrow_errors(path), pq.ParquetFile(path) as file:
        if lost := set(columns) - set(file.schema_arrow.names):
            raise NvretError(f"{path} has changed while it was read: no column {lost.pop()!r}")
        for batch in file.iter_batches(1024, columns=list(columns)):
            for name in columns:
                try:
                    batch[name].validate(full=True)
                except pa.ArrowInvalid as error:
                    raise NvretError(f"{path}: column {name!r} is not UTF-8: {error}") from error
            yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


def _objects_of(
    path: Path, columns: Sequence[str], lines: array, progress: bool
) -> Iterator[Piece]:
    """Of the objects of a JSON Lines file; their lines are added to ``lines``."""
    first = 1
    with progress_bar(desc=path.name, unit=" lines", show=progress) as bar:
        for block in _blocks(path):
            numbers = range(first, first + len(block))
            piece = _parsed(block, columns)
            if piece is None:
                found = dict(_objects(path, zip(numbers, _decoded(path, block, first))))  # noqa: B905
                piece = {name: [value.get(name) for value in found.values()] for name in columns}
                numbers = found
            lines.extend(numbers)
            if numbers:
                yield piece
            first += len(block)
            bar.update(len(block))


def _parsed(lines: Sequence[bytes], columns: Sequence[str]) -> Piece | None:
    """The columns by Arrow; None for lines that are not plainly an object each, with texts alone in
    these columns."""
    block = b"".join(lines)
    # So no object runs on into the next line, and as many objects as lines are one a line
    closed = all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines)
    if not closed or NULL.search(block):
        return None
    schema = pa.schema([(name, pa.string()) for name in dict.fromkeys(columns)])
    try:
        block.decode()  # also where no column is wanted
        table = pj.read_json(
            pa.BufferReader(block),
            pj.ReadOptions(block_size=len(block) + 1),
            pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowException, UnicodeDecodeError, OverflowError):
        return None
    if table.num_rows != len(lines):
        return None
    return {name: table[name].to_pylist() for name in columns}


def _fields(path: Path, columns: Sequence[str]) -> Row:
    """Of each row of a CSV or TSV."""
    cells = _cells(path)
    header = next(cells, [])
    if lost := set(columns) - set(header):
        raise NvretError(f"{path} has changed while it was read: no column {lost.pop()!r}")
    chosen = [header.index(name) for name in columns]
    for row, values in enumerate(cells):
        if len(values) != len(header):
            text = ("\t" if path.suffix == ".tsv" else ",").join(values)[:80]
            place = Rows(path, {}).place(row)
            raise NvretError(f"{place}: {text!r} has {len(values)} columns, expected {len(header)}")
        yield tuple(values[place] for place in chosen)


def _objects(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of lines of a JSON Lines file; empty ones are none."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NvretError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise NvretError(f"{path}:{number}: expected a JSON object")
        yield number, value


def _cells(path: Path) -> Iterator[list[str]]:
    """The header and the rows of a CSV or TSV; empty lines are none."""
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    csv.field_size_limit(LONGEST)
    reader = csv.reader(_lines(path), strict=True, **tabs)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise NvretError(f"{path}:{reader.line_num}: cannot be read: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, without a byte order mark."""
    first = 1
    for block in _blocks(path):
        yield from _decoded(path, block, first)
        first += len(block)


def _blocks(path: Path) -> Iterator[list[bytes]]:
    """The lines of a file, many at a time, without a byte order mark."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(codecs.BOM_UTF8))
            if start.startswith(b"\x1f\x8b"):
                raise NvretError(f"{path}: compressed by gzip; expected text: unpack it first")
            if start != codecs.BOM_UTF8:
                stream.seek(0)
            while block := stream.readlines(PIECE):
                yield block
    except OSError as error:
        raise NvretError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(path: Path, lines: Iterable[bytes], first: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=first):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise NvretError(f"{path}:{number}: not UTF-8: {error}") from error


@contextlib.contextmanager
def arrow_errors(path: Path) -> Iterator[None]:
    """Arrow's errors as `NvretError` with the file's name, in one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise NvretError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def tables(
    rows: Iterable[dict[str, Any]], schema: pa.Schema | None = None, number: int = 4096
) -> Iterator[pa.Table]:
    """So many rows at a time: the texts of all of them may be more than the memory holds."""
    rows = iter(rows)
    while some := list(itertools.islice(rows, number)):
        yield pa.Table.from_pylist(some, schema)


def write_parquet(parts: Iterable[pa.Table], path: Path) -> int:
    """Tables as one file, a row group for each. Returns how many rows; of none there is no file."""
    count, writer = 0, None
    with contextlib.ExitStack() as stack:
        for table in parts:
            writer = writer or stack.enter_context(
                pq.ParquetWriter(path, table.schema, compression="zstd")
            )
            writer.write_table(table)
            count += table.num_rows
    return count


def write_lines(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """JSON Lines. Returns how many; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            line = json.dumps(row, ensure_ascii=False)
            stream.write((json.dumps(row) if SURROGATE.search(line) else line) + "\n")
    return count
