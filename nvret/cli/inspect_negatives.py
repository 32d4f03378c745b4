"""``nvret inspect``: an HTML report on mined negatives."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.cli import own_data
from nvret.utils.errors import NvretError


def add(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="an HTML report on mined negatives")
    inspect.add_argument("negatives", type=Path, help="the Parquet file that `mine` wrote")
    own_data.add(inspect)
    inspect.add_argument("--hidden", type=Path, help="a .tsv of labels that mining did not see")
    inspect.add_argument("--teacher", help="the table's own; adds scores of random passages")
    inspect.add_argument("--output", type=Path, required=True, help="an HTML file")
    inspect.add_argument("--overwrite", action="store_true", help="replace the output")
    inspect.set_defaults(command=run)


def run(chosen: argparse.Namespace) -> None:
    from nvret import negatives
    from nvret.analysis import inspection
    from nvret.io import inputs

    own_data.check(chosen, "inspect needs")
    # Before the work, and again when the report is written
    if chosen.output.is_dir() or (chosen.output.exists() and not chosen.overwrite):
        raise NvretError(f"{chosen.output} exists, expected a new file or --overwrite")
    table = negatives.load(chosen.negatives)
    hidden = None if chosen.hidden is None else inputs.qrels(chosen.hidden)[0]
    dataset = own_data.load(chosen)
    found = inspection.inspect(table, dataset, hidden=hidden, teacher=chosen.teacher)
    found.save_html(chosen.output, overwrite=chosen.overwrite)
    counts = found.counts
    print(
        f"{chosen.output}: {counts['negatives']} negatives for {counts['pairs']} pairs of query "
        f"and positive; {counts['suspects']} are suspicious by text or label, {counts['above']} "
        "score at or above their positive"
    )
