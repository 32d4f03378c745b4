"""``nvret inspect``: an HTML report on mined negatives."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.errors import NvretError


def add(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="an HTML report on mined negatives")
    inspect.add_argument("negatives", type=Path, help="the Parquet file that `mine` wrote")
    inspect.add_argument("--data", help="a folder in BEIR's layout, or a packaged set's name")
    inspect.add_argument("--split", help="of the folder's qrels, where there are several")
    inspect.add_argument("--corpus", type=Path, help="BEIR's corpus.jsonl")
    inspect.add_argument("--queries", type=Path, help="BEIR's queries.jsonl")
    inspect.add_argument("--qrels", type=Path, help="the .tsv of labelled positives")
    inspect.add_argument("--hidden", type=Path, help="a .tsv of labels that mining did not see")
    inspect.add_argument("--teacher", help="the table's own; adds scores of random passages")
    inspect.add_argument("--output", type=Path, required=True, help="an HTML file")
    inspect.add_argument("--overwrite", action="store_true", help="replace the output")
    inspect.set_defaults(command=run)


def run(chosen: argparse.Namespace) -> None:
    from nvret import data, inputs, inspection

    files = {name: getattr(chosen, name) for name in ("corpus", "queries", "qrels")}
    given = [name for name, path in files.items() if path is not None]
    if chosen.data is not None and given:
        raise NvretError(f"--{given[0]} is not for --data {chosen.data}, which holds it")
    if chosen.data is None and len(given) < len(files):
        missing = [f"--{name}" for name in files if name not in given]
        raise NvretError(f"inspect needs --data, or {', '.join(missing)}")
    if chosen.split is not None and chosen.data is None:
        raise NvretError("--split is for --data, expected --qrels to name the file")
    # Before the work, and again when the report is written
    if chosen.output.is_dir() or (chosen.output.exists() and not chosen.overwrite):
        raise NvretError(f"{chosen.output} exists, expected a new file or --overwrite")
    table = inspection.read(chosen.negatives)
    hidden = None if chosen.hidden is None else inputs.qrels(chosen.hidden)[0]
    dataset = data.load_files(**files) if given else data.load(chosen.data, split=chosen.split)
    found = inspection.inspect(table, dataset, hidden=hidden, teacher=chosen.teacher)
    found.save_html(chosen.output, overwrite=chosen.overwrite)
    counts = found.counts
    print(
        f"{chosen.output}: {counts['negatives']} negatives for {counts['pairs']} pairs of query "
        f"and positive; {counts['suspects']} are suspicious by text or label, {counts['above']} "
        "score at or above their positive"
    )
