"""A data set by its name in the registry, from the hub, or from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvret.assets import registry, resolve
from nvret.data import RetrievalDataset
from nvret.io import beir
from nvret.utils.errors import NvretError


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    source: resolve.Source | None = None,
    drop_empty: bool = False,
    keep_unjudged: bool = False,
    progress: bool = True,
) -> RetrievalDataset:
    """See `nvret.data.load`."""
    text = str(name)
    if not isinstance(name, Path) and text in registry.datasets():
        folder = resolve.dataset_path(text, source=source, progress=progress)
        entry = registry.datasets()[text]
        packaged = entry.converter is not None and resolve.chosen_source(source) == "package"
        from_hub = not packaged and not any((folder / "qrels").glob("*.tsv"))
        split = split or entry.split
        if packaged and split is not None:
            raise NvretError(
                f"{text} has no split {split!r}: it is one set; see nvret.study.splits.split"
            )
    elif Path(name).is_dir():
        folder, from_hub = Path(name), False
    elif source == "hub":
        folder, from_hub = resolve.hub_dataset_path(text), True
    else:
        known = ", ".join(sorted(registry.datasets()))
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


def cleaning(name: str) -> list[dict[str, Any]]:
    """What the conversion of a packaged set kept and dropped, step by step, and why.

    >>> sorted(cleaning("nq")[0])
    ['dropped', 'kept', 'step', 'unit', 'why']
    """
    path = resolve.dataset_path(name, source="package") / "cleaning.json"
    return json.loads(path.read_text(encoding="utf-8"))
