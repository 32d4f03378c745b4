"""The ledger of claims as a table, all profiles side by side, with filters that need no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.util.docutils import SphinxDirective


class Ledger(SphinxDirective):
    """``{ledger}``: the table of ``results/*/claims.json`` of the configured profiles."""

    def run(self) -> list[nodes.Node]:
        results = Path(self.env.srcdir).parent / "results"
        for name in self.config.profiles:
            self.env.note_dependency(str(results / name / "claims.json"))
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters["slug"] = slug
        html = environment.get_template("ledger.html").render(
            content(results, self.config.profiles)
        )
        return [nodes.raw("", html, format="html")]


def slug(text: str) -> str:
    """Text as a class or an anchor.

    >>> slug("RQ3: methods")
    'rq3-methods'
    """
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def content(results: Path, profiles: Sequence[str]) -> dict[str, Any]:
    """What the template shows.

    Args:
        profiles: the first one's order is kept; one that was not run is left out.
    """
    from nvret.study import claims, ledger
    from nvret.study.verdicts import VERDICTS

    ledgers, margin = ledger.read_all(results, profiles)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    counts = {}
    for profile, table in ledgers.items():
        shown = ledger.shown(table)
        for row, text in zip(table.itertuples(), shown.itertuples(), strict=True):
            new = {key: getattr(row, key) for key in ("claim", "student", "section", "primary")}
            entry = rows.setdefault(
                (row.id, row.student),
                new | {"paper": "–", "table": row.table, "findings": {}, "command": ""},
            )
            if row.verdict not in ("not run", "not testable here"):
                file = "" if profile == "quick" else f" params/{profile}.yaml"
                entry["command"] = entry["command"] or f"nvret claim {row.id}{file}"
            entry["paper"] = text.paper if entry["paper"] == "–" else entry["paper"]
            entry["findings"][profile] = {"here": text.here, "verdict": row.verdict} | {
                "note": row.note, "p": text.p, "adjusted": text.p_adjusted
            }  # fmt: skip
        number = table["verdict"].value_counts()
        counts[profile] = {name: int(number[name]) for name in VERDICTS if name in number}
    sections: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in claims.TABLES}
    for entry in rows.values():
        sections[entry["table"]].setdefault(entry["section"], []).append(entry)
    return {
        "profiles": list(ledgers),
        "students": list(dict.fromkeys(row["student"] for row in rows.values() if row["student"])),
        "verdicts": [name for name in VERDICTS if any(name in one for one in counts.values())],
        "counts": counts,
        "margin": margin,
        "tables": {claims.TABLES[name]: own for name, own in sections.items() if own},
    }
