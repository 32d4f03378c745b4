"""The options that say where one's own queries, passages and labels lie; for several commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.data import RetrievalDataset

TABLE = ".jsonl, .parquet, .csv (quoted) or .tsv (unquoted)"
SETS = ({"data"}, {"pairs"}, {"pairs", "corpus"}, {"corpus", "queries", "qrels"})
NAMES = ("data", "pairs", "corpus", "queries", "qrels")


def add(parser: argparse.ArgumentParser) -> None:
    """The group "your data" of ``--help``."""
    data = parser.add_argument_group(
        "your data", "--data; or --corpus, --queries and --qrels; or --pairs, and --corpus or not"
    )
    data.add_argument(
        "--data", metavar="NAME",
        help="a folder in BEIR's layout, a known set, or one of the hub as owner/name@revision",
    )  # fmt: skip
    data.add_argument("--split", help="of --data: which of its qrels (the only one, or test)")
    data.add_argument("--corpus", type=Path, metavar="FILE", help=f"passages: {TABLE}")
    data.add_argument("--queries", type=Path, metavar="FILE", help=f"queries: {TABLE}")
    data.add_argument(
        "--qrels", type=Path, metavar="FILE",
        help="labelled positives: query-id, corpus-id and score, above 0 if relevant",
    )  # fmt: skip
    data.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help=f"a query's text and its positives' in each row: {TABLE}",
    )  # fmt: skip
    data.add_argument("--id-column", metavar="NAME", help="of corpus and queries (_id or id)")
    data.add_argument("--text-column", metavar="NAME", help="of corpus and queries (text)")
    data.add_argument("--title-column", metavar="NAME", help="of the corpus (title, if there)")
    data.add_argument(
        "--query-column", metavar="NAME", help="of --pairs (query, anchor, question; or the first)"
    )
    data.add_argument(
        "--positive-column", metavar="NAME", action="append",
        help="of --pairs; several times for several (positive, positive_1, answer, …)",
    )  # fmt: skip


def given(chosen: argparse.Namespace) -> list[str]:
    """Which of the options are given, as they are typed."""
    return [spelled(name) for name in NAMES if getattr(chosen, name) is not None]


def check(chosen: argparse.Namespace, needs: str) -> None:
    """`NvretError` for options that do not make a data set.

    Args:
        needs: how the message begins: "evaluate needs", for example.
    """
    found = given(chosen)
    if {name.removeprefix("--") for name in found} not in SETS:
        said = f"only {', '.join(sorted(found))}" if found else "none"
        raise NvretError(
            f"{needs} as data --data alone, --pairs with or without --corpus, or --corpus, "
            f"--queries and --qrels together; given: {said}"
        )
    for option, needed in (
        ("split", "data"), ("query_column", "pairs"), ("positive_column", "pairs"),
        ("id_column", "corpus"), ("text_column", "corpus"), ("title_column", "corpus"),
    ):  # fmt: skip
        if getattr(chosen, option) is not None and getattr(chosen, needed) is None:
            raise NvretError(f"{spelled(option)} is of {spelled(needed)}, which is not given")


def load(chosen: argparse.Namespace, *, keep_unjudged: bool = False) -> RetrievalDataset:
    """The data set that the options name; `NvretError` with file and row where it is not one.

    Args:
        keep_unjudged: keep the queries without labels, so that rows stay in place.
    """
    from nvret import data
    from nvret.io import inputs

    columns = inputs.Columns(chosen.id_column, chosen.text_column or "text", chosen.title_column)
    if chosen.pairs is not None:
        return inputs.load_pairs(
            chosen.pairs,
            query_column=chosen.query_column,
            positive_columns=chosen.positive_column or (),
            corpus=chosen.corpus,
            columns=columns,
        )
    if chosen.data is not None:
        hub = "@" in chosen.data and not Path(chosen.data).exists()
        dataset = data.load(
            chosen.data,
            split=chosen.split,
            source="hub" if hub else None,
            keep_unjudged=keep_unjudged,
        )
        where = chosen.data
    else:
        files = chosen.corpus, chosen.queries, chosen.qrels
        dataset = inputs.load_files(*files, columns=columns, keep_unjudged=keep_unjudged)
        where = str(chosen.qrels)
    inputs.check_positives({"qrels": dataset.qrels}, where)
    return dataset


def spelled(name: str) -> str:
    """An option as it is typed.

    >>> spelled("second_opinion")
    '--second-opinion'
    """
    return f"--{name.replace('_', '-')}"
