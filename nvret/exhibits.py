"""The ledger and the benchmarks as rows for a page to show."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nvret import ledger
from nvret.errors import NvretError

VERDICTS = ("reproduced", "undecided", "not reproduced", *ledger.UNTESTED)


@dataclass(frozen=True)
class Finding:
    """What one profile says of a claim; the texts are those of the notebooks' ledger."""

    here: str
    verdict: str
    note: str
    holm: str


@dataclass(frozen=True)
class Row:
    """A claim for one student or set; ``findings`` in the order of the profiles, None: no row."""

    claim: str
    student: str
    section: str
    paper: str
    findings: list[Finding | None]

    @property
    def classes(self) -> str:
        """A class for each verdict, for the filter.

        >>> Row("c", "static", "s", "–", [Finding("–", "not run", "", ""), None]).classes
        'is-not-run'
        """
        return " ".join(sorted({f"is-{slug(one.verdict)}" for one in self.findings if one}))


def slug(text: str) -> str:
    """Text as a class or an anchor.

    >>> slug("RQ3: methods")
    'rq3-methods'
    """
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def claims(results: Path, profiles: list[str]) -> dict[str, list[Row]]:
    """The claims of all profiles side by side, by section.

    Args:
        results: the folder of the profiles' results.
        profiles: that have a ``claims.json``; the first one's order is kept.
    Raises:
        NvretError: a file is missing or is no ledger.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for place, profile in enumerate(profiles):
        table = _ledger(results / profile / "claims.json")
        shown = ledger.shown(table)
        for row, text in zip(table.itertuples(), shown.itertuples(), strict=True):
            holm = "" if pd.isna(row.p_holm) else f"{row.p_holm:.3g}"
            entry = found.setdefault(
                (row.id, row.student),
                {"claim": row.claim, "student": row.student, "section": row.section}
                | {"paper": text.paper, "findings": [None] * len(profiles)},
            )
            entry["findings"][place] = Finding(text.here, row.verdict, row.note, holm)
    sections: dict[str, list[Row]] = {}
    for entry in found.values():
        sections.setdefault(entry["section"], []).append(Row(**entry))
    return sections


def counts(results: Path, profiles: list[str]) -> dict[str, dict[str, int]]:
    """Number of rows by profile and verdict; verdicts that do not occur are left out."""
    found = {}
    for profile in profiles:
        number = _ledger(results / profile / "claims.json")["verdict"].value_counts()
        found[profile] = {name: int(number[name]) for name in VERDICTS if name in number}
    return found


def margin(results: Path, profile: str) -> float:
    """The smallest difference of NDCG@10 that matters, as the ledger was made with."""
    return _json(results / profile / "claims.json")["margin"]


def benchmarks(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The benchmarks' rows by title, and when and on what they were taken.

    Raises:
        NvretError: there are no results.
    """
    path = folder / "table.csv"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise NvretError(f"{path}: not the benchmarks' table ({error})") from error
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.itertuples():
        spread = f" [{row.low:.3g}, {row.high:.3g}]" if row.rounds > 1 else ""
        groups.setdefault(row.benchmark, []).append(
            {
                "what": row.case if row.quantity == "time" else f"{row.case}: {row.quantity}",
                "against": row.other,
                "ratio": f"{row.ratio:.3g}{spread}",
                "fastest": f"{row.fastest:.3g}",
                "target": f"≤ {row.target:.3g}",
                "met": bool(row.met),
            }
        )
    facts = _json(min(folder.glob("*.json"), default=folder / "bm25.json"))
    return groups, {"taken": facts["taken"], **facts["hardware"]}


def _ledger(path: Path) -> pd.DataFrame:
    try:
        table = pd.DataFrame(_json(path)["claims"]).fillna({"student": "", "note": ""})
        numbers = ["paper", "difference", "low", "high", "p_holm"]
        return table.astype(dict.fromkeys(numbers, float))
    except (KeyError, TypeError, ValueError) as error:
        raise NvretError(f"{path}: expected a ledger as `nvret report` writes it") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NvretError(f"{path}: {error}") from error
