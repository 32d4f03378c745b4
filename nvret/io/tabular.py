"""Columns of a file of rows, JSON Lines, Parquet, CSV or TSV, and the place of each row in it."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from nvret.utils.errors import NvretError

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
BLOCK = 1 << 26  # bytes that are read of a .csv at a time: a row must fit


@dataclass(frozen=True)
class Rows:
    """Some columns of a file.

    Attributes:
        path: of the file.
        columns: name -> values, as the file has them; a JSON object without the key gives None.
        lines: of a JSON Lines file, the line of each row, from 1; None for other files.
    """

    path: Path
    columns: dict[str, pa.ChunkedArray | list[Any]]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def place(self, row: int) -> str:
        """Where the row stands, for messages; rows count from 1.

        >>> Rows(Path("a.jsonl"), {}, [1, 3]).place(1), Rows(Path("a.csv"), {}).place(1)
        ('a.jsonl:3', 'a.csv: row 2 below the header')
        """
        if self.lines is not None:
            return f"{self.path}:{self.lines[row]}"
        below = " below the header" if self.path.suffix in (".csv", ".tsv") else ""
        return f"{self.path}: row {row + 1}{below}"

    def texts(self, name: str, *, ids: bool = False, null: str | None = None) -> pa.ChunkedArray:
        """A column of texts.

        Args:
            ids: whole numbers become texts, and none may be empty.
            null: stands for what is missing; None: that is an error.
        Raises:
            NvretError: names the first row that holds something else.
        """
        values, wanted = self.columns[name], "a non-empty string" if ids else "a string"
        if isinstance(values, list):
            values = self._strings(name, values, ids, null, wanted)
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if not (_is_text(kind) or pa.types.is_null(kind) or (ids and pa.types.is_integer(kind))):
            raise NvretError(f"{self.path}: column {name!r} is {kind}; expected text")
        values = values.cast(pa.string())
        if null is not None:
            values = pc.fill_null(values, null)
        wrong = pc.is_null(values)
        if ids:
            wrong = pc.or_(wrong, pc.equal(pc.fill_null(values, ""), ""))
        if (row := pc.index(wrong, True).as_py()) >= 0:
            said = values[row].as_py()
            raise NvretError(f"{self.place(row)}: {name!r} is {said!r}; expected {wanted}")
        return values

    def _strings(
        self, name: str, values: list[Any], ids: bool, null: str | None, wanted: str
    ) -> pa.ChunkedArray:
        found = []
        for row, value in enumerate(values):
            if ids and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if value is None and null is not None:
                value = null
            if not isinstance(value, str):
                raise NvretError(f"{self.place(row)}: {name!r} is {value!r}; expected {wanted}")
            check_unicode(value, self.place(row), name)
            found.append(value)
        return pa.chunked_array([pa.array(found, pa.string())])

    def unique(self, name: str, values: pa.ChunkedArray) -> None:
        """`NvretError` that names both rows where a value stands twice."""
        codes = values.combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, back = np.unique(codes, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[back] != np.arange(len(codes)))
        if len(again):
            row = int(again[0])
            other = int(first[back][row])
            before = f"line {self.lines[other]}" if self.lines is not None else f"row {other + 1}"
            said = values[row].as_py()
            raise NvretError(f"{self.place(row)}: {name} {said!r} stands in {before} too")


def check_unicode(text: str, place: str, name: str) -> None:
    """`NvretError` for half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NvretError(f"{place}: {name!r} cannot be written as UTF-8: {error}") from error


def names(path: Path) -> list[str]:
    """The columns of a file: those of the header, or the keys of the first JSON object.

    Raises:
        NvretError: no such file, another kind of file, an empty one, a name that stands twice.
    """
    path, suffix = Path(path), _suffix(path)
    if suffix == ".jsonl":
        first = next(_objects(path, False), None)
        if first is None:
            raise NvretError(f"{path}: empty; expected a JSON object in each line")
        for name in first[1]:
            check_unicode(name, f"{path}:{first[0]}", name)
        return list(first[1])
    with _arrow_errors(path):
        found = pq.read_schema(path).names if suffix == ".parquet" else _header(path, suffix)
    if twice := [name for name in found if found.count(name) > 1]:
        raise NvretError(f"{path}: column {twice[0]!r} stands there more than once")
    return found


def read(path: Path, columns: Sequence[str], *, progress: bool = True) -> Rows:
    """These columns of a file; those of CSV and TSV as texts.

    A field of a ``.csv`` may stand in quotes and then hold line breaks; in a ``.tsv`` a quote is a
    character like any other, as in BEIR's and MS MARCO's files.

    Raises:
        NvretError: names the row that cannot be read, or what is wrong with the file.
    """
    path, suffix = Path(path), _suffix(path)
    if suffix == ".jsonl":
        found: dict[str, list[Any]] = {name: [] for name in columns}
        lines = []
        for number, value in _objects(path, progress):
            lines.append(number)
            for name in columns:
                found[name].append(value.get(name))
        return Rows(path, found, lines)
    wrong: list[pacsv.InvalidRow] = []
    if suffix != ".parquet":
        for _ in _decoded(path):  # Arrow would not name the line
            pass
    with _arrow_errors(path):
        if suffix == ".parquet":
            table = pq.read_table(path, columns=list(columns))
        else:
            table = pacsv.read_csv(path, **_csv_options(suffix, columns, wrong))
    rows = Rows(path, {name: table[name] for name in columns})
    if wrong:
        row, said = wrong[0], wrong[0].text[:80]
        place = rows.place(row.number - 2)
        raise NvretError(
            f"{place}: {said!r} has {row.actual_columns} columns, expected {row.expected_columns}"
        )
    if not table.num_rows:
        raise NvretError(f"{path}: empty; expected rows")
    for name in columns:
        try:
            table[name].validate(full=True)
        except pa.ArrowInvalid as error:
            raise NvretError(f"{path}: column {name!r} is not UTF-8: {error}") from error
    return rows


def choose(path: Path, found: Sequence[str], wanted: Sequence[str], option: str) -> str:
    """The one of the columns that has a wanted name.

    Raises:
        NvretError: none or several; names those there are, and the nearest.
    """
    there = [name for name in wanted if name in found]
    if len(there) == 1:
        return there[0]
    if there:
        raise NvretError(f"{path}: both {' and '.join(map(repr, there))} could be meant; {option}")
    low = {name.lower(): name for name in found}
    near = [low[name] for key in wanted for name in difflib.get_close_matches(key.lower(), low)]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    said = " or ".join(map(repr, wanted))
    raise NvretError(f"{path}: no column {said}; it has {', '.join(found)}{hint}; {option}")


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise NvretError(f"{path}: unknown kind of file, expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise NvretError(f"{path}: no such file")
    return path.suffix


def _objects(path: Path, progress: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON Lines file.

    The parser is Python's and not Arrow's, which counts rows from the start of a block and so
    cannot name the line of an error.
    """
    bar = tqdm(_decoded(path), desc=path.name, unit=" lines", disable=not progress)
    for number, line in bar:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NvretError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise NvretError(f"{path}:{number}: expected a JSON object")
        yield number, value


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a file, without a byte order mark."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise NvretError(f"{path}:{number}: not UTF-8: {error}") from error
    except OSError as error:
        raise NvretError(f"{path}: cannot be read: {error}") from error


def _header(path: Path, suffix: str) -> list[str]:
    lines = (text for _, text in _decoded(path))
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    try:
        found = next((row for row in csv.reader(lines, **style) if row), None)
    except csv.Error as error:
        raise NvretError(f"{path}: cannot be read: {error}") from error
    if found is None:
        raise NvretError(f"{path}: empty; expected a header and rows")
    return found


def _csv_options(suffix: str, columns: Sequence[str], wrong: list) -> dict[str, Any]:
    def invalid(row: pacsv.InvalidRow) -> str:
        if not wrong:
            wrong.append(row)
        return "skip"

    tabs = suffix == ".tsv"
    return {
        # One thread: only then does Arrow know the numbers of wrong rows
        "read_options": pacsv.ReadOptions(use_threads=False, block_size=BLOCK),
        "parse_options": pacsv.ParseOptions(
            delimiter="\t" if tabs else ",",
            quote_char=False if tabs else '"',
            newlines_in_values=not tabs,
            invalid_row_handler=invalid,
        ),
        "convert_options": pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=False,
        ),
    }


class _arrow_errors:
    """Arrow's errors as `NvretError` with the file's name, in one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            said = str(error).splitlines()[0]
            raise NvretError(f"{self.path}: cannot be read: {said}") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
