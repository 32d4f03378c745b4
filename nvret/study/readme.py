"""The README's results: written from the profiles' ledgers, so that no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

from nvret.study import ledger
from nvret.utils import store
from nvret.utils.errors import NvretError

PROFILES = ("quick", "cpu")  # that the README shows, where they have been run
HEADLINE = (
    "perc-beats-naive", "margin-beats-naive", "shifted-beats-naive", "mined-beats-random",
    "perc-halves-false-negatives",
)  # fmt: skip


def section(results: Path) -> str:
    """Markdown of the profiles' results: verdicts counted, and the claims of the headline.

    Args:
        results: the folder ``results``.
    Raises:
        NvretError: none of the profiles has been run.
    """
    names = [name for name in PROFILES if (results / name / "claims.json").is_file()]
    if not names:
        raise NvretError(f"{results} has no ledger of {' or '.join(PROFILES)}; run a profile first")
    ledgers = {name: ledger.read(results / name) for name in names}
    margin = json.loads((results / names[0] / "claims.json").read_text(encoding="utf-8"))["margin"]
    columns = {"claim": "", "student or set": "", "paper": ":"}
    rows: dict[tuple[str, str], list[str]] = {}
    for place, (name, table) in enumerate(ledgers.items()):
        columns |= {f"`{name}`": ":", f"verdict, `{name}`": ""}
        table = table[table["id"].isin(HEADLINE)]
        for key, row in zip(table["id"], ledger.shown(table).itertuples(), strict=True):
            cells = rows.setdefault((key, row.student), [row.claim, row.student, row.paper])
            cells += ["–", "not run"] * (place - (len(cells) - 3) // 2) + [row.here, row.verdict]
    for cells in rows.values():
        cells += ["–", "not run"] * ((len(columns) - len(cells)) // 2)
    order = sorted(rows, key=lambda key: HEADLINE.index(key[0]))
    return "\n".join(
        [
            ledger.reading(margin),
            "",
            *(f"- `{name}`: {ledger.counted(table)}." for name, table in ledgers.items()),
            "",
            *ledger.markdown_table(columns, [rows[key] for key in order]),
        ]
    )


def update(readme: Path, results: Path) -> None:
    """Write the profiles' results into the README."""
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
