"""Passages, queries and judgements from files of one's own, checked row by row."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nvret.data import RetrievalDataset, without_text
from nvret.io import tabular
from nvret.utils import store
from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")
Tables = dict[str, pa.Table]
# Spellings of the columns, in lower case with "_" for "-" and blanks
QRELS = {
    "query_id": ("query_id", "queryid", "qid", "query"),
    "corpus_id": ("corpus_id", "corpusid", "doc_id", "docid", "did", "document_id", "passage_id",
                  "pid"),
    "score": ("score", "relevance", "rel", "label", "grade"),
}  # fmt: skip
QUERY = ("query", "anchor", "question")
POSITIVE = re.compile(r"(positive|pos|answer|passage|document)(_?\d+)?")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of queries and corpus.

    The id's default is ``_id`` or ``id``; that of the corpus's title ``title``, where there is one.
    """

    id: str | None = None
    text: str = "text"
    title: str | None = None

    def find(self, path: Path, title: bool) -> tuple[str, str, str | None]:
        """Names of the id, the text and, if there is one, the title in a file."""
        found = tabular.names(path)
        ids = ("_id", "id") if self.id is None else (self.id,)
        ident = tabular.choose(path, found, ids, "--id-column names another")
        text = tabular.choose(path, found, (self.text,), "--text-column names another")
        if title and self.title is not None:
            tabular.choose(path, found, (self.title,), "--title-column names another")
        name = self.title or "title"
        lines = path.suffix == ".jsonl"  # whose first object may lack what others have
        return ident, text, name if title and (name in found or lines) else None


def texts(
    path: Path,
    *,
    title: bool,
    columns: Columns = Columns(),
    allow_empty: bool = False,
    progress: bool = True,
) -> pa.Table:
    """Passages (``title``) or queries of one file: columns id, text and, of passages, title.

    With ``allow_empty`` passages may lack both title and text; `nvret.io.beir.drop_empty` removes
    them. `NvretError` names the file, the row and the key, and what was expected there.
    """
    path = Path(path)
    id_name, text_name, title_name = columns.find(path, title)
    wanted = dict.fromkeys(name for name in (id_name, text_name, title_name) if name)
    parts = []
    for rows in tabular.read(path, list(wanted), progress=progress):
        values = {"id": rows.texts(id_name, ids=True)}
        if title:
            values["title"] = rows.texts(title_name, null="") if title_name else [""] * len(rows)
        values["text"] = rows.texts(text_name)
        part = _strings(values)
        if not allow_empty and (row := pc.index(without_text(part), True).as_py()) >= 0:
            kind, ident = "passage" if title else "query", part["id"][row].as_py()
            raise NvretError(f"{rows.place(rows.start + row)}: {kind} {ident!r} has no text")
        parts.append(part)
    table = pa.concat_tables(parts)
    rows.unique(id_name, table.select(["id"]))
    return table


def qrels(path: Path, *, progress: bool = True) -> tuple[pa.Table, tabular.Rows]:
    """Judgements of one file, by any spelling of ``QRELS``, and its last rows for messages.

    A file of two columns holds positives, and no score.
    """
    path = Path(path)
    found = tabular.names(path)
    plain = {re.sub(r"[-\s]", "_", name.strip().lower().lstrip("_")): name for name in found}
    named = {}
    for column, spellings in QRELS.items():
        if there := [spelling for spelling in spellings if spelling in plain]:
            named[column] = plain[there[0]]
        elif column != "score" or len(found) != 2:
            name = column.replace("_id", "-id")
            raise NvretError(
                f"{path}: no column {name!r}; it has {', '.join(found)}; expected query-id, "
                "corpus-id and score"
            )
    parts = []
    for rows in tabular.read(path, list(named.values()), progress=progress):
        ids = {name: rows.texts(named[name], ids=True) for name in ("query_id", "corpus_id")}
        scores = _scores(rows, named["score"]) if "score" in named else [1] * len(rows)
        parts.append(_qrels(ids, scores))
    table = pa.concat_tables(parts)
    rows.unique("pair", table.select(["query_id", "corpus_id"]))
    return table, rows


def write_qrels(tables: Sequence[pa.Table], path: Path) -> None:
    """Judgements as `qrels` reads them; of a pair that several tables judge, the last counts."""
    names = ["query_id", "corpus_id", "score"]
    rows = pa.concat_tables([table.select(names) for table in tables], promote_options="permissive")
    judged = {tuple(row[:2]): row[2] for row in zip(*rows.to_pydict().values(), strict=True)}
    for name in {part for pair in judged for part in pair}:
        if any(mark in name for mark in "\t\r\n"):
            raise NvretError(f"id {name!r} holds a tab or a line break, which a .tsv cannot")
    with store.atomic_file(Path(path)) as partial:
        lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{p}\t{s}" for (q, p), s in judged.items())]
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scores(rows: tabular.Rows, name: str) -> list[int]:
    scores = []
    for row, value in enumerate(rows.columns[name], rows.start):
        try:
            number = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not number.is_integer() or abs(number) >= 2**31:
            raise NvretError(f"{rows.place(row)}: {name} is {value!r}; expected a whole number")
        scores.append(int(number))
    return scores


def tables(
    corpus: Path,
    queries: Path,
    judgements: Path,
    *,
    columns: Columns = Columns(),
    allow_empty: bool = False,
    keep_unjudged: bool = False,
    progress: bool = True,
) -> Tables:
    """The three tables of a data set, from three files; arguments and errors as of `texts`.

    ``keep_unjudged`` keeps the queries that nothing judges, which are left out otherwise.
    """
    options = {"columns": columns, "progress": progress}
    parts = {
        "corpus": texts(corpus, title=True, allow_empty=allow_empty, **options),
        "queries": texts(queries, title=False, **options),
    }
    table, rows = qrels(judgements, progress=progress)
    for column, name in (("query_id", "queries"), ("corpus_id", "corpus")):
        missing = pc.is_null(pc.index_in(table[column], parts[name]["id"]))
        if (row := pc.index(missing, True).as_py()) >= 0:
            ident = table[column][row].as_py()
            raise NvretError(f"{rows.place(row)}: {column} {ident!r} is not in the {name}")
    if not keep_unjudged:
        parts["queries"] = only_judged(parts["queries"], table, str(judgements))
    return parts | {"qrels": table}


def only_judged(queries: pa.Table, table: pa.Table, where: str) -> pa.Table:
    """The queries that the judgements name."""
    judged = queries.filter(pc.is_in(queries["id"], table["query_id"].combine_chunks()))
    if judged.num_rows < queries.num_rows:
        log.info("%s: judges %d of %d queries", where, judged.num_rows, queries.num_rows)
    return judged


def check_positives(table: pa.Table, where: str) -> None:
    """`NvretError` for a query that is judged and has no positive, which cannot be mined for."""
    relevant = table["query_id"].filter(pc.greater(table["score"], 0)).combine_chunks()
    without = pc.invert(pc.is_in(table["query_id"], relevant))
    if (row := pc.index(without, True).as_py()) >= 0:
        raise NvretError(
            f"{where}: query {table['query_id'][row].as_py()!r} has no positive, expected a "
            "judgement above 0 for each query that is judged"
        )


def load_files(corpus: Path, queries: Path, judgements: Path, **options: Any) -> RetrievalDataset:
    """A data set from three files: .jsonl, .parquet, .csv or .tsv; options as of `tables`."""
    return RetrievalDataset(Path(corpus).stem, **tables(corpus, queries, judgements, **options))


def load_pairs(
    path: Path | Sequence[Path],
    *,
    query_column: str | None = None,
    positive_columns: Sequence[str] = (),
    corpus: Path | None = None,
    columns: Columns = Columns(),
    progress: bool = True,
) -> RetrievalDataset:
    r"""A data set from a file of pairs: a query's text and those of its positives in each row.

    Equal texts become one query or one passage. A positive may be a list of texts in JSON Lines and
    Parquet; a second positive may be missing. `NvretError` names the row that is none.

    Args:
        path: of the file, or of several with the same columns, which are read one after another.
        query_column: default ``query``, ``anchor`` or ``question``, or the first of two columns.
        positive_columns: default all that are named as ``POSITIVE`` has it, or the second of two.
        corpus: a file of more passages; a positive that is among them is not added.
        columns: its columns.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "pairs.csv"
    ...     _ = path.write_text("query,positive\nwho?,she\nwhere?,here\nwho?,he\n")
    ...     dataset = load_pairs(path, progress=False)
    >>> dataset.qrels.select(["query_id", "corpus_id"]).to_pydict()
    {'query_id': ['q0', 'q1', 'q0'], 'corpus_id': ['p0', 'p1', 'p2']}
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    query, named = _pair_columns(paths[0], query_column, positive_columns)
    passages = _strings({"id": [], "title": [], "text": []})
    if corpus is not None:
        passages = texts(corpus, title=True, columns=columns, progress=progress)
    known = zip(*passages.to_pydict().values(), strict=True)
    ids = {f"{title} {text}".strip() if title else text: ident for ident, title, text in known}
    taken, added = set(passages["id"].to_pylist()), {}
    queries, judged = {}, {}
    pieces = (tabular.read(one, [query, *named], progress=progress) for one in paths)
    pairs = (pair for some in pieces for rows in some for pair in _pairs(rows, query, named))
    for text, positives in pairs:
        ident = queries.setdefault(text, f"q{len(queries)}")
        for positive in positives:
            if positive not in ids:
                name = f"p{len(added)}"
                while name in taken:
                    name = f"_{name}"
                ids[positive] = name
                added[name] = positive
            judged[ident, ids[positive]] = None
    query_ids, passage_ids = zip(*judged, strict=True)
    new = {"id": added, "title": [""] * len(added), "text": added.values()}
    return RetrievalDataset(
        paths[0].stem,
        pa.concat_tables([passages, _strings(new)]),
        _strings({"id": queries.values(), "text": queries.keys()}),
        _qrels({"query_id": query_ids, "corpus_id": passage_ids}, [1] * len(judged)),
    )


def _pair_columns(
    path: Path, query_column: str | None, positive_columns: Sequence[str]
) -> tuple[str, list[str]]:
    """Names of the column of queries and of those of positives."""
    found = tabular.names(path)
    if query_column is None and len(found) == 2 and not set(found) & set(QUERY):
        query_column = next(name for name in found if name not in positive_columns)
    wanted = QUERY if query_column is None else (query_column,)
    query = tabular.choose(path, found, wanted, "--query-column names another")
    for name in positive_columns:
        tabular.choose(path, found, (name,), "--positive-column names another")
    others = [name for name in found if name != query]
    named = list(positive_columns) or [name for name in others if POSITIVE.fullmatch(name)]
    named = named or (others if len(others) == 1 else [])
    if not named:
        raise NvretError(
            f"{path}: no column of positives; it has {', '.join(found)}; --positive-column names it"
        )
    return query, named


def _pairs(rows: tabular.Rows, query: str, named: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The text of each row's query, and those of its positives."""
    listed = zip(*(rows.columns[name] for name in named), strict=True)
    for row, (text, values) in enumerate(zip(rows.texts(query), listed, strict=True), rows.start):
        place, positives = rows.place(row), []
        if not text.strip():
            raise NvretError(f"{place}: {query!r} has no text")
        for name, value in zip(named, values, strict=True):
            given = value if isinstance(value, list) else [value]
            positives += [_text(one, place, name) for one in given if one not in (None, "")]
        if not positives:
            raise NvretError(f"{place}: query {text[:60]!r} has no positive in {', '.join(named)}")
        yield text, positives


def _text(value: Any, place: str, name: str) -> str:
    """The text of one positive."""
    if not isinstance(value, str):
        raise NvretError(f"{place}: {name!r} is {value!r}; expected text")
    if not value.strip():
        raise NvretError(f"{place}: {name!r} has no text")
    tabular.check_unicode(value, place, name)
    return value


def _strings(columns: dict[str, Iterable[str]]) -> pa.Table:
    return pa.table({name: pa.array(list(v), pa.large_string()) for name, v in columns.items()})


def _qrels(ids: dict[str, Iterable[str]], scores: Iterable[int]) -> pa.Table:
    return _strings(ids).append_column("score", pa.array(list(scores), pa.int32()))
