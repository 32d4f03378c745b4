"""The README's results: written from the profiles' tables, so that no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from nvret.study import ledger
from nvret.study.report import AVERAGE
from nvret.utils import store
from nvret.utils.errors import NvretError

PROFILES = ("quick", "cpu")  # that the README shows, where they have been run
METHODS = "06_means"


def section(results: Path) -> str:
    """Markdown of the profiles' results.

    Args:
        results: the folder ``results``.
    Raises:
        NvretError: none of the profiles has been run.
    """
    shown = [name for name in PROFILES if (results / name / "tables" / "10_claims.csv").is_file()]
    if not shown:
        raise NvretError(f"{results} has no ledger of {' or '.join(PROFILES)}; run a profile first")
    ledgers = {name: _read(results / name / "tables" / "10_claims.csv") for name in shown}
    lines = [_facts(results / name) for name in shown]
    margin = _json(results / shown[0] / "claims.json")["margin"]
    lines += ["", *_ledger(ledgers, margin)]
    title = f"**NDCG@10** by method and test set, profile `{shown[0]}`, over seeds and questions:"
    lines += ["", title, "", *_means(results / shown[0] / "tables" / f"{METHODS}.csv")]
    return "\n".join(lines)


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


def _read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(_there(path))
    texts = [column for column in ("student", "note") if column in table]
    return table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(_there(path).read_text(encoding="utf-8"))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise NvretError(f"{path}: no such file; run the profile first")
    return path


def _facts(folder: Path) -> str:
    """One line: what made a profile's results, and on what."""
    facts = _json(folder / "provenance.json")
    settings, hardware = facts["parameters"], facts["hardware"]
    students = ", ".join(f"`{key}` {value['model']}" for key, value in settings["students"].items())
    return (
        f"Profile `{settings['profile']}`: students {students}; default teacher "
        f"{settings['teacher']}; {len(settings['seeds'])} seeds; executed on "
        f"{hardware['threads']} threads of {hardware['processor']} in {facts['seconds'] / 60:.0f} "
        "minutes, not counting what earlier runs had left in the store.  "
    )


def _ledger(ledgers: dict[str, pd.DataFrame], margin: float) -> list[str]:
    """The claims that a profile tested as a table, the others as one sentence each."""
    first = next(iter(ledgers.values()))
    names = list(ledgers)
    rows = {
        name: {(row.id, row.student): row for row in table.itertuples()}
        for name, table in ledgers.items()
    }
    texts = {
        name: dict(zip(rows[name], ledger.shown(table).to_dict("records"), strict=True))
        for name, table in ledgers.items()
    }
    counts = {name: _count(table) for name, table in ledgers.items()}
    lines = [
        "**Ledger of claims.** Points of NDCG@10, mean of the test sets, 95 % interval over seeds "
        "and questions. The claims and the arms that decide them were fixed before the runs "
        "([`params/claims.yaml`](params/claims.yaml)). *Reproduced*: the whole interval has the "
        f"claim's sign. *Not reproduced*: the whole interval lies below {100 * margin:g} points, "
        "the smallest difference that matters; so much is allowed where a claim says *not worse* "
        "or *no better*. A claim of several parts holds if all parts do; its smallest is shown.",
        "",
        *(f"`{name}`: {said}.  " for name, said in counts.items()),
        "",
        "| claim | student or set | paper | "
        + " | ".join(f"`{n}` | verdict" for n in names)
        + " |",
        "|---|---|---:|" + "---:|---|" * len(names),
    ]
    keys = list(dict.fromkeys(key for name in names for key in rows[name]))
    order = {claim: place for place, claim in enumerate(first["id"])}
    keys.sort(key=lambda key: order.get(key[0], len(order)))
    tested = [key for key in keys if any(_tested(rows[name].get(key)) for name in names)]
    section = None
    for key in tested:
        row = next(rows[name][key] for name in names if key in rows[name])
        text = next(texts[name][key] for name in names if key in texts[name])
        if row.section != section:
            section = row.section
            lines.append(f"| **{section}** | | |" + " | |" * len(names))
        cells = " | ".join(_cell(rows[name].get(key), texts[name].get(key)) for name in names)
        lines.append(f"| {row.claim} | {row.student} | {text['paper']} | {cells} |")
    seen = {claim for claim, _ in tested}
    left = {key[0]: rows[name][key] for name in names for key in rows[name] if key[0] not in seen}
    for verdict in ledger.UNTESTED:
        said = [f"{row.claim} ({row.note})" for row in left.values() if row.verdict == verdict]
        if said:
            lines += ["", f"*{verdict.capitalize()}*: " + "; ".join(said) + "."]
    return lines


def _tested(row: Any) -> bool:
    return row is not None and row.verdict not in ledger.UNTESTED


def _cell(row: Any, text: dict[str, str] | None) -> str:
    if not _tested(row):
        return "– | not run"
    mark = f"**{row.verdict}**" if row.verdict == "reproduced" else row.verdict
    return f"{text['here']} | {mark}"


def _count(table: pd.DataFrame) -> str:
    """How many verdicts of each kind, and what is left when all are taken together."""
    counts = table["verdict"].value_counts()
    tests = table["p_holm"].notna()
    firm = (tests & (table["p_holm"] <= 0.05) & (table["verdict"] == "reproduced")).sum()
    said = ", ".join(f"{counts[name]} {name}" for name in counts.index)
    return f"{said}; adjusted for all {tests.sum()} tests together (Holm), {firm} stay reproduced"


def _means(path: Path) -> list[str]:
    means = _read(path)
    table = means.pivot_table(
        index=["student", "arm"], columns="dataset", values="mean", sort=False
    )
    table = table[[*(name for name in table if name != AVERAGE), AVERAGE]]
    lines = ["| student | trained on | " + " | ".join(table.columns) + " |"]
    lines += ["|---|---|" + "---:|" * len(table.columns)]
    for (student, arm), row in table.iterrows():
        cells = " | ".join("–" if pd.isna(value) else f"{value:.3f}" for value in row)
        lines.append(f"| {student} | {arm.split(': ', 1)[-1]} | {cells} |")
    return lines
