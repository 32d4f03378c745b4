"""Reading BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, ``qrels/*.tsv``) and its hub form."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nvret.data import without_text
from nvret.io import inputs
from nvret.io.inputs import Tables
from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")
PARTS = ("corpus", "queries", "qrels")
_SPELLED = {"_id": "id", "query-id": "query_id", "corpus-id": "corpus_id"}


def read_parquet(folder: Path) -> Tables:
    """A folder that nvret's own converters wrote."""
    return {name: pq.read_table(folder / f"{name}.parquet") for name in PARTS}


def _choose(names: list[str], split: str | None, where: str) -> str:
    """The wanted part, or the only one, or "test"."""
    chosen = split or (names[0] if len(names) == 1 else "test")
    if chosen not in names:
        raise NvretError(f"{where}: no qrels named {chosen!r}; there are: {', '.join(names)}")
    return chosen


def read_folder(
    folder: Path, split: str | None, *, keep_unjudged: bool = False, progress: bool = True
) -> Tables:
    """A folder in BEIR's layout: the queries that the chosen qrels judge, or all of them."""
    files = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if not files:
        raise NvretError(f"{folder / 'qrels'}: no .tsv file; expected BEIR's layout")
    return inputs.tables(
        folder / "corpus.jsonl",
        folder / "queries.jsonl",
        files[_choose(list(files), split, str(folder / "qrels"))],
        allow_empty=True,
        keep_unjudged=keep_unjudged,
        progress=progress,
    )


def read_hub_folder(folder: Path, split: str | None) -> Tables:
    """A hub repository's files in the form that mteb and BEIR use there.

    Configurations ``corpus`` and ``queries`` with ``_id``, ``text`` (and ``title``), and
    ``default`` (or ``qrels``) with ``query-id``, ``corpus-id`` and ``score``.
    """
    import datasets

    configs = datasets.get_dataset_config_names(str(folder))
    judged = "default" if "default" in configs else "qrels"
    tables = {}
    for name, config in zip(PARTS, ("corpus", "queries", judged), strict=True):
        try:
            parts = datasets.load_dataset(str(folder), config)
        except ValueError as error:
            raise NvretError(f"{folder}: no configuration {config!r}: {error}") from error
        if name == "qrels":
            part = _choose(list(parts), split, f"{folder}: {config}")
        else:
            part = name if name in parts else next(iter(parts))
        table = parts[part].with_format("arrow")[:]
        tables[name] = table.rename_columns([_SPELLED.get(c, c) for c in table.column_names])
    corpus = tables["corpus"]
    titles = corpus["title"] if "title" in corpus.column_names else pa.nulls(len(corpus))
    titles = pc.fill_null(titles.cast(pa.large_string()), "")
    return tables | {
        "corpus": corpus.select(["id", "text"]).append_column("title", titles),
        "queries": inputs.only_judged(tables["queries"], tables["qrels"], str(folder)),
    }


def drop_empty(tables: Tables, name: str) -> Tables:
    """Without the passages that have no text and no title, and their judgements."""
    corpus = tables["corpus"]
    empty = without_text(corpus)
    gone = corpus["id"].filter(empty)
    if len(gone):
        log.warning("%s: left out %d passages without text", name, len(gone))
        lost = pc.is_in(tables["qrels"]["corpus_id"], gone.combine_chunks())
        tables = tables | {
            "corpus": corpus.filter(pc.invert(empty)),
            "qrels": tables["qrels"].filter(pc.invert(lost)),
        }
    return tables
