"""The ledger of claims as a table, all profiles side by side, with filters that need no script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from docutils import nodes
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.util.docutils import SphinxDirective

VERDICTS = ("reproduced", "undecided", "not reproduced", "not run", "not testable here")


class Ledger(SphinxDirective):
    """``{ledger}``: the table of ``results/*/claims.json`` of the configured profiles."""

    def run(self) -> list[nodes.Node]:
        results = Path(self.env.srcdir).parent / "results"
        files = {name: results / name / "claims.json" for name in self.config.profiles}
        for path in files.values():
            self.env.note_dependency(str(path))
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters["slug"] = slug
        html = environment.get_template("ledger.html").render(content(files))
        return [nodes.raw("", html, format="html")]


def slug(text: str) -> str:
    """Text as a class or an anchor.

    >>> slug("RQ3: methods")
    'rq3-methods'
    """
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def content(files: dict[str, Path]) -> dict[str, Any]:
    """What the template shows.

    Args:
        files: the ``claims.json`` of each profile; the first one's order is kept.
    """
    from nvret.study import ledger

    ledgers = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    counts = {}
    for profile, one in ledgers.items():
        table = pd.DataFrame(one["claims"]).fillna({"student": "", "note": ""})
        numbers = ["paper", "difference", "low", "high", "p_holm"]
        table = table.astype(dict.fromkeys(numbers, float))
        shown = ledger.shown(table)
        for row, text in zip(table.itertuples(), shown.itertuples(), strict=True):
            new = {"claim": row.claim, "student": row.student, "section": row.section}
            entry = rows.setdefault(
                (row.id, row.student), new | {"paper": text.paper, "findings": {}}
            )
            holm = "" if pd.isna(row.p_holm) else f"{row.p_holm:.3g}"
            entry["findings"][profile] = {"here": text.here, "verdict": row.verdict} | {
                "note": row.note, "holm": holm
            }  # fmt: skip
        number = table["verdict"].value_counts()
        counts[profile] = {name: int(number[name]) for name in VERDICTS if name in number}
    sections: dict[str, list[dict[str, Any]]] = {}
    for entry in rows.values():
        sections.setdefault(entry["section"], []).append(entry)
    return {
        "profiles": list(files),
        "students": list(dict.fromkeys(row["student"] for row in rows.values() if row["student"])),
        "verdicts": [name for name in VERDICTS if any(name in one for one in counts.values())],
        "counts": counts,
        "margin": next(iter(ledgers.values()))["margin"],
        "sections": sections,
    }
