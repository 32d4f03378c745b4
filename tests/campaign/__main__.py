"""``python -m campaign``: run the trials one after another, and write what came out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from campaign import disks, fuzz, kills, mined, shared
from nvret.study import paths, readme
from nvret.study.config import project_root
from nvret.utils import machine, store

TRIALS = {
    "kills": kills.trial, "jobs": shared.jobs, "full": disks.full, "read-only": disks.read_only,
    "mining": mined.trial, "inputs": fuzz.trial, "links": shared.links, "remote": shared.remote,
}  # fmt: skip
COLUMNS = ["trial", "done", "times", "differences", "tracebacks", "hangs", "seconds"]


def main() -> None:
    """Each trial's row is kept as soon as it ends; names run some of them again."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(TRIALS)}")
    parser.add_argument("--share", type=float, default=1, help="of each trial's cases (1)")
    parser.add_argument("--output", type=Path, default=project_root() / "results" / "reliability")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in TRIALS]:
        parser.error(f"no trial {', '.join(unknown)}; expected {', '.join(TRIALS)}")
    own = chosen.output == project_root() / "results" / "reliability"
    for name in chosen.names or TRIALS:
        print(f"{name} …", flush=True)
        print(f"  {run(name, chosen.share, chosen.output)}", flush=True)
        write(chosen.output, project_root() if own else None)


def run(name: str, share: float, output: Path) -> str:
    """Run a trial in a folder that goes with it, and write ``<name>.json``; one line on it."""
    logging.disable(logging.WARNING)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nvret-campaign-") as folder:
        outcome = TRIALS[name](Path(folder), share)
    facts = {
        "taken": datetime.now(UTC).date().isoformat(),
        "hardware": machine.hardware(),
        "versions": machine.versions(paths.PACKAGES),
        "commit": machine.git(project_root(), "rev-parse", "HEAD"),
        "seconds": round(time.monotonic() - started),
        "share": share,
    }
    store.write_json(output / f"{name}.json", dataclasses.asdict(outcome) | facts)
    return f"{outcome} in {facts['seconds']} s"


def write(output: Path, root: Path | None) -> None:
    """Write ``table.csv``, a row for each trial that has been run.

    Args:
        root: of the checkout, whose page is brought up to date between its markers; None: not.
    """
    files = {name: output / f"{name}.json" for name in TRIALS}
    facts = {name: json.loads(file.read_text(encoding="utf-8"))
             for name, file in files.items() if file.exists()}  # fmt: skip
    table = pd.DataFrame([{"trial": name, **row} for name, row in facts.items()])[COLUMNS]
    with store.atomic_file(output / "table.csv") as partial:
        table.to_csv(partial, index=False)
    if root is not None:
        readme.replace(root / "docs" / "reliability.md", "reliability", section(table, facts))


def section(table: pd.DataFrame, facts: dict[str, dict]) -> str:
    """Markdown of the table, where it was taken, and what else the trials say."""
    one = next(iter(facts.values()))
    days = sorted({row["taken"] for row in facts.values()})
    hardware = one["hardware"]
    lines = [
        f"Taken on {' and '.join(days)} on {hardware['cores']} cores of {hardware['processor']}.",
        "",
        "| trial | what was done | times | differences | tracebacks | hangs | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in table.itertuples(index=False)),
        "",
    ]
    for name, row in facts.items():  # what went wrong stands in the JSON file, with its input
        if row["notes"] and "\n" not in (last := row["notes"][-1]):
            lines.append(f"- *{name}*: {last}.")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
