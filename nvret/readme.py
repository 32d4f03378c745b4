"""The README's results: written from a profile's tables, so that no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from nvret import store
from nvret.errors import NvretError
from nvret.report import AVERAGE


def section(results: Path) -> str:
    """Markdown of a profile's results.

    Args:
        results: ``results/<profile>``.
    Raises:
        NvretError: the profile has not been run.
    """
    try:
        claims = pd.read_csv(results / "tables" / "06_claims.csv")
        means = pd.read_csv(results / "tables" / "06_means.csv")
        facts = json.loads((results / "provenance.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NvretError(f"{error.filename}: no such file; run the profile first") from error
    settings = facts["parameters"]
    lines = [
        f"Profile `{settings['profile']}`: teacher {settings['teacher']['name']}, "
        f"{len(settings['seeds'])} seeds, {facts['seconds'] / 60:.0f} minutes after installation "
        f"on {facts['hardware']['threads']} threads of {facts['hardware']['processor']}.",
        "",
        "**Claims ledger.** Points of NDCG@10, mean of the test sets, 95 % interval over seeds and "
        "questions. *Reproduced*: the whole interval has the paper's sign. *Not reproduced*: the "
        "whole interval has the other sign.",
        "",
        "| claim of the paper | student | paper | here | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for row in claims.itertuples():
        here = f"{100 * row.difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]"
        lines.append(
            f"| {row.claim} | {row.student} | {100 * row.paper:+.2f} | {here} | {row.verdict} |"
        )
    lines += ["", "**NDCG@10** by test set, mean over seeds and questions:", ""]
    table = means.pivot_table(
        index=["student", "method"], columns="dataset", values="mean", sort=False
    )
    table = table[[*(name for name in table if name != AVERAGE), AVERAGE]]
    lines += ["| student | method | " + " | ".join(table.columns) + " |"]
    lines += ["|---|---|" + "---:|" * len(table.columns)]
    for (student, method), row in table.iterrows():
        cells = " | ".join("–" if pd.isna(value) else f"{value:.3f}" for value in row)
        lines.append(f"| {student} | {method} | {cells} |")
    return "\n".join(lines)


def update(readme: Path, results: Path) -> None:
    """Write a profile's results into the README."""
    replace(readme, "results", section(results))


def replace(readme: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = readme.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise NvretError(f"{readme}: expected the markers {begin} and {end}, once each")
    before, rest = old.split(begin)
    after = rest.split(end)[1]
    with store.atomic_file(readme) as partial:
        partial.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
