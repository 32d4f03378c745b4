"""The front door to data: load a set by name or from a folder, split it, check it for leaks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvret import assets, beir, inputs
from nvret.dataset import RetrievalDataset, from_texts
from nvret.errors import NvretError
from nvret.inputs import Columns
from nvret.splits import Leaks, Split, check_leaks, leaks, split, with_clusters, without_leaks

__all__ = [
    "Columns",
    "Leaks",
    "RetrievalDataset",
    "Split",
    "check_leaks",
    "cleaning",
    "from_texts",
    "leaks",
    "load",
    "load_files",
    "load_pairs",
    "split",
    "with_clusters",
    "without_leaks",
]


def load(
    name: str | Path,
    *,
    split: str | None = None,
    source: assets.Source | None = None,
    drop_empty: bool = False,
    keep_unjudged: bool = False,
    progress: bool = True,
) -> RetrievalDataset:
    """A data set by name, or from a folder.

    Args:
        name: a name of ``datasets.yaml``; or a folder in BEIR's layout (``corpus.jsonl``,
            ``queries.jsonl``, ``qrels/<split>.tsv``); or, with ``source="hub"``, the hub id of
            such a set, as ``owner/name@revision``.
        split: which judgements to read, where there are several; default the only one, or "test".
        source: "package" (default) or "hub".
        drop_empty: leave out passages without any text and their judgements instead of raising an
            error (some of BEIR's sets have them).
        keep_unjudged: of a folder in BEIR's layout, keep the queries that the judgements do not
            name too, so that rows stay in place.
    Raises:
        NvretError: an unknown name, or files that are not as expected (file, line and key named).
    """
    text = str(name)
    if not isinstance(name, Path) and text in assets.datasets():
        folder = assets.dataset_path(text, source=source, progress=progress)
        entry = assets.datasets()[text]
        packaged = entry.converter is not None and assets.chosen_source(source) == "package"
        from_hub = not packaged and not any((folder / "qrels").glob("*.tsv"))
        split = split or entry.split
        if packaged and split is not None:
            raise NvretError(f"{text} has no split {split!r}: it is one set; see nvret.data.split")
    elif Path(name).is_dir():
        folder, from_hub = Path(name), False
    elif source == "hub":
        folder, from_hub = assets.hub_dataset_path(text), True
    else:
        known = ", ".join(sorted(assets.datasets()))
        raise NvretError(
            f"{text!r} is no folder and no known data set (known: {known}); for a set of the hub "
            "use source='hub' and owner/name@revision"
        )
    if from_hub:
        tables = beir.read_hub_folder(folder, split)
    elif (folder / "corpus.parquet").exists():
        tables = beir.read_parquet(folder)
    else:
        tables = beir.read_folder(folder, split, keep_unjudged=keep_unjudged, progress=progress)
    if drop_empty:
        tables = beir.drop_empty(tables, text)
    return RetrievalDataset(text, **tables)


def load_files(
    corpus: Path,
    queries: Path,
    qrels: Path,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
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
    tables = inputs.joined(
        inputs.texts(corpus, title=True, columns=columns, progress=progress),
        inputs.texts(queries, title=False, columns=columns, progress=progress),
        inputs.qrels(qrels, progress=progress),
        keep_unjudged=keep_unjudged,
    )
    return RetrievalDataset(Path(corpus).stem, **tables)


def load_pairs(
    path: Path,
    *,
    query_column: str | None = None,
    positive_columns: Sequence[str] = (),
    corpus: Path | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    progress: bool = True,
) -> RetrievalDataset:
    """A data set from a file of texts and their positives; arguments as of `nvret.inputs.pairs`.

    Args:
        corpus: a file of more passages.
        columns: its columns.
    """
    more = None
    if corpus is not None:
        more = inputs.texts(corpus, title=True, columns=columns, progress=progress)
    chosen = {"query_column": query_column, "positive_columns": positive_columns}
    tables = inputs.pairs(path, **chosen, corpus=more, progress=progress)
    return RetrievalDataset(Path(path).stem, **tables)


def cleaning(name: str) -> list[dict[str, Any]]:
    """What the conversion of a packaged set kept and dropped, step by step, and why.

    >>> sorted(cleaning("nq")[0])
    ['dropped', 'kept', 'step', 'unit', 'why']
    """
    path = assets.dataset_path(name, source="package") / "cleaning.json"
    return json.loads(path.read_text(encoding="utf-8"))
