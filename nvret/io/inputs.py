"""Passages, queries and judgements from files of one's own, checked row by row."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret.data import RetrievalDataset
from nvret.io import tabular
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

    Attributes:
        id: None: ``_id`` or ``id``.
        text: must be there.
        title: of the corpus; None: ``title``, where there is one.
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
        if not title:
            return ident, text, None
        if self.title is not None:
            tabular.choose(path, found, (self.title,), "--title-column names another")
        lines = path.suffix == ".jsonl"  # whose first object may lack what others have
        name = self.title or "title"
        return ident, text, name if name in found or lines else None


def texts(
    path: Path,
    *,
    title: bool,
    columns: Columns = Columns(),
    allow_empty: bool = False,
    progress: bool = True,
) -> pa.Table:
    """Passages (``title``) or queries of one file: columns id, text and, of passages, title.

    Args:
        allow_empty: passages may lack both title and text; `nvret.io.beir.drop_empty` removes them.
    Raises:
        NvretError: names the file, the row and the key, and what was expected there.
    """
    path = Path(path)
    id_name, text_name, title_name = columns.find(path, title)
    wanted = [name for name in (id_name, text_name, title_name) if name]
    rows = tabular.read(path, list(dict.fromkeys(wanted)), progress=progress)
    ident, text = rows.texts(id_name, ids=True), rows.texts(text_name)
    rows.unique(id_name, ident)
    found = {"id": ident, "text": text}
    if title:
        blank = pa.chunked_array([pa.repeat("", len(rows)).cast(pa.string())])
        found["title"] = rows.texts(title_name, null="") if title_name else blank
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    if title:
        empty = pc.and_(empty, pc.equal(pc.utf8_trim_whitespace(found["title"]), ""))
    row = pc.index(empty, True).as_py()
    if row >= 0 and not (title and allow_empty):
        kind = "passage" if title else "query"
        raise NvretError(f"{rows.place(row)}: {kind} {ident[row].as_py()!r} has no text")
    order = ("id", "title", "text") if title else ("id", "text")
    return pa.table({name: found[name] for name in order})


def qrels(path: Path, *, progress: bool = True) -> tuple[pa.Table, tabular.Rows]:
    """Judgements of one file, and its rows for messages.

    Other spellings than query-id, corpus-id and score are taken too: those of ``QRELS``. A file of
    two columns holds positives, and no score.
    """
    path = Path(path)
    found = tabular.names(path)
    plain = {re.sub(r"[-\s]", "_", name.strip().lower().lstrip("_")): name for name in found}
    named = {}
    for column, spellings in QRELS.items():
        if column == "score" and len(found) == 2 and not any(s in plain for s in spellings):
            continue
        there = [spelling for spelling in spellings if spelling in plain]
        if not there:
            said = f"no column {column.replace('_id', '-id')!r}; it has {', '.join(found)}"
            raise NvretError(f"{path}: {said}; expected query-id, corpus-id and score")
        named[column] = plain[there[0]]
    rows = tabular.read(path, list(named.values()), progress=progress)
    table = {name: rows.texts(named[name], ids=True) for name in ("query_id", "corpus_id")}
    scores = _scores(rows, named["score"]) if "score" in named else [1] * len(rows)
    table["score"] = pa.chunked_array([pa.array(scores, pa.int32())])
    both = pc.binary_join_element_wise(table["query_id"], table["corpus_id"], "\0")
    try:
        rows.unique("pair", both)
    except NvretError as error:
        raise NvretError(str(error).replace(r"\x00", "', '")) from None
    return pa.table(table), rows


def _scores(rows: tabular.Rows, name: str) -> list[int]:
    values: Any = rows.columns[name]
    found = []
    for row, value in enumerate(values if isinstance(values, list) else values.to_pylist()):
        try:
            number = float(value) if not isinstance(value, bool) else float("nan")
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not number.is_integer() or abs(number) >= 2**31:
            raise NvretError(f"{rows.place(row)}: {name} is {value!r}; expected a whole number")
        found.append(int(number))
    return found


def joined(
    corpus: pa.Table,
    queries: pa.Table,
    judged: tuple[pa.Table, tabular.Rows],
    *,
    keep_unjudged: bool = False,
) -> Tables:
    """The three tables of a data set.

    Args:
        judged: of `qrels`.
        keep_unjudged: keep queries that nothing judges, which are left out otherwise.
    Raises:
        NvretError: a judgement names a query or a passage that is not there.
    """
    table, rows = judged
    for column, part, name in (
        ("query_id", queries, "queries"),
        ("corpus_id", corpus, "corpus"),
    ):
        row = pc.index(pc.is_null(pc.index_in(table[column], part["id"])), True).as_py()
        if row >= 0:
            said = table[column][row].as_py()
            raise NvretError(f"{rows.place(row)}: {column} {said!r} is not in the {name}")
    if not keep_unjudged:
        queries = only_judged(queries, table, str(rows.path))
    return {"corpus": corpus, "queries": queries, "qrels": table}


def only_judged(queries: pa.Table, table: pa.Table, where: str) -> pa.Table:
    """The queries that the judgements name."""
    judged = queries.filter(pc.is_in(queries["id"], table["query_id"].combine_chunks()))
    if judged.num_rows < queries.num_rows:
        log.info("%s: judges %d of %d queries", where, judged.num_rows, queries.num_rows)
    return judged


def check_positives(qrels: pa.Table, where: str) -> None:
    """`NvretError` for a query that is judged and has no positive, which cannot be mined for."""
    table = tables["qrels"]
    relevant = table["query_id"].filter(pc.greater(table["score"], 0)).combine_chunks()
    without = pc.invert(pc.is_in(table["query_id"], relevant))
    if (row := pc.index(without, True).as_py()) >= 0:
        raise NvretError(
            f"{where}: query {table['query_id'][row].as_py()!r} has no positive, expected a "
            "judgement above 0 for each query that is judged"
        )


def pairs(
    path: Path,
    *,
    query_column: str | None = None,
    positive_columns: Sequence[str] = (),
    corpus: pa.Table | None = None,
    progress: bool = True,
) -> Tables:
    r"""A data set from a file of pairs: a query's text and those of its positives in each row.

    Equal texts become one query or one passage. A positive may be a list of texts in JSON Lines and
    Parquet; a second positive may be missing.

    Args:
        query_column: default ``query``, ``anchor`` or ``question``, or the first of two columns.
        positive_columns: default all that are named as ``POSITIVE`` has it, or the second of two.
        corpus: more passages, as `texts` gives them; a positive that is among them is not added.
    Raises:
        NvretError: names the row that has no query, no positive, or something else than text.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "pairs.csv"
    >>> _ = path.write_text("query,positive\nwho?,she\nwhere?,here\nwho?,he\n")
    >>> pairs(path, progress=False)["qrels"].select(["query_id", "corpus_id"]).to_pydict()
    {'query_id': ['q0', 'q1', 'q0'], 'corpus_id': ['p0', 'p1', 'p2']}
    >>> folder.cleanup()
    """
    path = Path(path)
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
    rows = tabular.read(path, [query, *named], progress=progress)
    asked = rows.texts(query).to_pylist()
    answers = [_values(rows.columns[name]) for name in named]
    titles = [] if corpus is None else zip(*corpus.to_pydict().values(), strict=True)
    ids = {f"{title} {text}".strip() if title else text: ident for ident, title, text in titles}
    taken, known, new = set(ids.values()), len(ids), {}
    queries: dict[str, str] = {}
    judged: dict[tuple[str, str], None] = {}
    for row, (text, *some) in enumerate(zip(asked, *answers, strict=True)):
        place = rows.place(row)
        if not text.strip():
            raise NvretError(f"{place}: {query!r} has no text")
        positives = list(_positives(place, named, some))
        if not positives:
            raise NvretError(f"{place}: query {text[:60]!r} has no positive in {', '.join(named)}")
        ident = queries.setdefault(text, f"q{len(queries)}")
        for positive in positives:
            if positive not in ids:
                name = f"p{len(ids) - known}"
                while name in taken:  # an id of the given corpus
                    name = f"_{name}"
                taken.add(name)
                ids[positive] = new[positive] = name
            judged[ident, ids[positive]] = None
    added = _strings({"id": new.values(), "title": [""] * len(new), "text": new.keys()})
    columns = list(zip(*judged, strict=True))
    table = _strings({"query_id": columns[0], "corpus_id": columns[1]})
    score = pa.array(np.ones(len(judged), np.int32))
    return {
        "corpus": added if corpus is None else pa.concat_tables([corpus, added]),
        "queries": _strings({"id": queries.values(), "text": queries.keys()}),
        "qrels": table.append_column("score", score),
    }


def _values(column: pa.ChunkedArray | list[Any]) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


def _positives(place: str, named: Sequence[str], some: Sequence[Any]):
    for name, value in zip(named, some, strict=True):
        for text in value if isinstance(value, list) else [value]:
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise NvretError(f"{place}: {name!r} is {text!r}; expected text")
            if not text.strip():
                raise NvretError(f"{place}: {name!r} has no text")
            tabular.check_unicode(text, place, name)
            yield text


def _strings(columns: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(list(v), pa.string()) for name, v in columns.items()})


def load_files(
    corpus: Path,
    queries: Path,
    qrels: Path,
    *,
    columns: Columns = Columns(),
    keep_unjudged: bool = False,
    progress: bool = True,
) -> RetrievalDataset:
    """A data set from three files: .jsonl, .parquet, .csv or .tsv, each of any kind.

    Args:
        columns: names of the columns of ``corpus`` and ``queries``.
        keep_unjudged: keep the queries that ``qrels`` does not name, so that rows stay in place.
    Raises:
        NvretError: file and row, and what was expected there.
    """
    tables = joined(
        texts(corpus, title=True, columns=columns, progress=progress),
        texts(queries, title=False, columns=columns, progress=progress),
        qrels(qrels, progress=progress),
        keep_unjudged=keep_unjudged,
    )
    return RetrievalDataset(Path(corpus).stem, **tables)


def load_pairs(
    path: Path,
    *,
    query_column: str | None = None,
    positive_columns: Sequence[str] = (),
    corpus: Path | None = None,
    columns: Columns = Columns(),
    progress: bool = True,
) -> RetrievalDataset:
    """A data set from a file of texts and their positives; arguments as of `pairs`.

    Args:
        corpus: a file of more passages.
        columns: its columns.
    """
    more = None
    if corpus is not None:
        more = texts(corpus, title=True, columns=columns, progress=progress)
    chosen = {"query_column": query_column, "positive_columns": positive_columns}
    tables = pairs(path, **chosen, corpus=more, progress=progress)
    return RetrievalDataset(Path(path).stem, **tables)
