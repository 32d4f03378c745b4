"""Reading BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, ``qrels/*.tsv``) and its hub form."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from nvret.errors import NvretError

log = logging.getLogger("nvret")
Tables = dict[str, pa.Table]


def read_parquet(folder: Path) -> Tables:
    """A folder that nvret's own converters wrote."""
    return {
        part: pq.read_table(folder / f"{part}.parquet") for part in ("corpus", "queries", "qrels")
    }


def _objects(path: Path, progress: bool) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON Lines file."""
    try:
        with path.open(encoding="utf-8") as stream:
            bar = tqdm(stream, desc=path.name, unit=" lines", disable=not progress)
            for number, line in enumerate(bar, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise NvretError(f"{path}:{number}: no JSON: {error}") from error
                if not isinstance(value, dict):
                    raise NvretError(f"{path}:{number}: expected a JSON object")
                yield number, value
    except FileNotFoundError as error:
        raise NvretError(f"{path}: no such file; expected BEIR's layout") from error
    except UnicodeDecodeError as error:
        raise NvretError(f"{path}: not UTF-8: {error}") from error


def _texts(path: Path, *, title: bool, progress: bool) -> pa.Table:
    columns: dict[str, list[str]] = {"id": [], "title": [], "text": []}
    lines: dict[str, int] = {}
    for number, value in _objects(path, progress):
        ident = value.get("_id")
        if isinstance(ident, int) and not isinstance(ident, bool):
            ident = str(ident)
        if not isinstance(ident, str) or not ident:
            raise NvretError(f"{path}:{number}: '_id' is {ident!r}; expected a non-empty string")
        if ident in lines:
            raise NvretError(f"{path}:{number}: _id {ident!r} stands in line {lines[ident]} too")
        lines[ident] = number
        fields = {"title": value.get("title") or "" if title else "", "text": value.get("text")}
        for key, text in fields.items():
            if not isinstance(text, str):
                raise NvretError(f"{path}:{number}: {key!r} is {text!r}; expected a string")
        if not title and not fields["text"].strip():
            raise NvretError(f"{path}:{number}: query {ident!r} has no text")
        columns["id"].append(ident)
        for key, text in fields.items():
            columns[key].append(text)
    if not title:
        del columns["title"]
    return pa.table({key: pa.array(column, pa.string()) for key, column in columns.items()})


def _qrels(path: Path) -> pa.Table:
    rows: list[tuple[str, str, int]] = []
    if not path.is_file():
        raise NvretError(f"{path}: no such file; expected judgements, tab-separated")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.rstrip("\r\n").split("\t")
            if number == 1:
                if fields != ["query-id", "corpus-id", "score"]:
                    raise NvretError(
                        f"{path}:1: header is {fields}; expected query-id, corpus-id and score "
                        "with tabs between them"
                    )
                continue
            if fields == [""]:
                continue
            try:
                query, passage, score = fields
                rows.append((query, passage, int(score)))
            except ValueError as error:
                raise NvretError(
                    f"{path}:{number}: {fields}; expected query id, corpus id and a whole number"
                ) from error
    query, passage, score = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "query_id": pa.array(query, pa.string()),
            "corpus_id": pa.array(passage, pa.string()),
            "score": pa.array(score, pa.int32()),
        }
    )


def read_qrels(path: Path) -> pa.Table:
    """Judgements alone: a file of ``qrels/*.tsv``; columns query_id, corpus_id, score (int32)."""
    return _qrels(path)


def _choose(names: list[str], split: str | None, where: str) -> str:
    """The wanted part, or the only one, or "test"."""
    if split is None and len(names) == 1:
        return names[0]
    chosen = split or "test"
    if chosen not in names:
        raise NvretError(f"{where}: no qrels named {chosen!r}; there are: {', '.join(names)}")
    return chosen


def read_folder(folder: Path, split: str | None, *, progress: bool = True) -> Tables:
    """A folder in BEIR's layout. Only queries that the chosen qrels judge are kept.

    Raises:
        NvretError: names the file and the line, and what was expected there.
    """
    files = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if not files:
        raise NvretError(f"{folder / 'qrels'}: no .tsv file; expected BEIR's layout")
    path = files[_choose(list(files), split, str(folder / "qrels"))]
    return read_files(folder / "corpus.jsonl", folder / "queries.jsonl", path, progress)


def read_files(
    corpus_file: Path, queries_file: Path, qrels_file: Path, progress: bool = True
) -> Tables:
    """The three files of BEIR's layout. Only queries that the qrels judge are kept."""
    qrels = _qrels(qrels_file)
    corpus = _texts(corpus_file, title=True, progress=progress)
    queries = _texts(queries_file, title=False, progress=progress)
    for column, table, file in (
        ("query_id", queries, queries_file.name),
        ("corpus_id", corpus, corpus_file.name),
    ):
        row = pc.index(pc.is_null(pc.index_in(qrels[column], table["id"])), True).as_py()
        if row >= 0:
            said = qrels[column][row].as_py()
            raise NvretError(f"{qrels_file}: {column} {said!r} is not in {file}")
    return {"corpus": corpus, "queries": _judged(queries, qrels, str(qrels_file)), "qrels": qrels}


def _judged(queries: pa.Table, qrels: pa.Table, where: str) -> pa.Table:
    judged = queries.filter(pc.is_in(queries["id"], qrels["query_id"].combine_chunks()))
    if judged.num_rows < queries.num_rows:
        log.info("%s: judges %d of %d queries", where, judged.num_rows, queries.num_rows)
    return judged


def read_hub_folder(folder: Path, split: str | None) -> Tables:
    """A hub repository's files in the form that mteb and BEIR use there.

    Configurations ``corpus`` and ``queries`` with ``_id``, ``text`` (and ``title``), and
    ``default`` (or ``qrels``) with ``query-id``, ``corpus-id`` and ``score``.
    """
    import datasets

    def table(config: str, part: str | None = None) -> pa.Table:
        try:
            parts = datasets.load_dataset(str(folder), config)
        except ValueError as error:
            raise NvretError(f"{folder}: no configuration {config!r}: {error}") from error
        names = list(parts)
        chosen = names[0] if part is None and len(names) == 1 else part
        if config in ("default", "qrels"):
            chosen = _choose(names, split, f"{folder}: {config}")
        elif chosen not in names:
            chosen = config
        found = parts[chosen].with_format("arrow")[:]
        return found.rename_columns(
            [
                {"_id": "id", "query-id": "query_id", "corpus-id": "corpus_id"}.get(c, c)
                for c in found.column_names
            ]
        )

    configs = datasets.get_dataset_config_names(str(folder))
    qrels = table("default" if "default" in configs else "qrels")
    qrels = qrels.set_column(
        qrels.column_names.index("score"), "score", qrels["score"].cast(pa.int32())
    )
    corpus, queries = table("corpus"), table("queries")
    if "title" not in corpus.column_names:
        corpus = corpus.append_column("title", pa.array([""] * len(corpus), pa.string()))
    title = pc.fill_null(corpus["title"], "")
    corpus = corpus.set_column(corpus.column_names.index("title"), "title", title)
    return {"corpus": corpus, "queries": _judged(queries, qrels, str(folder)), "qrels": qrels}


def drop_empty(tables: Tables, name: str) -> Tables:
    """Without the passages that have no text and no title, and their judgements."""
    corpus = tables["corpus"]
    text = pc.binary_join_element_wise(
        pc.fill_null(corpus["title"], ""), pc.fill_null(corpus["text"], ""), " "
    )
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    gone = corpus["id"].filter(empty)
    if len(gone):
        log.warning("%s: left out %d passages without text", name, len(gone))
        lost = pc.is_in(tables["qrels"]["corpus_id"], gone.combine_chunks())
        tables = tables | {
            "corpus": corpus.filter(pc.invert(empty)),
            "qrels": tables["qrels"].filter(pc.invert(lost)),
        }
    return tables
