"""The README's results: written from the profiles' ledgers, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nvret.study import ledger
from nvret.study.verdicts import VERDICTS
from nvret.utils import store
from nvret.utils.errors import NvretError

PROFILES = ("quick", "cpu")  # that the README shows, where they have been run


def section(results: Path) -> str:
    """Markdown of the profiles' results: verdicts counted, and the primary claims.

    Profiles share a row where both ran the same experiment, by the ledger's ``experiment``.

    Args:
        results: the folder ``results``.
    Raises:
        NvretError: none of the profiles has a ledger that can be read.
    """
    ledgers, margin = ledger.read_all(results, PROFILES)
    names = list(ledgers)
    lines = [
        "Points of NDCG@10 on the in-domain test sets, 95 % interval over seeds and questions; p "
        "adjusted for the primary claims (Holm). *Confirmed*: above 0, and half of the paper's "
        "difference. *No effect*: the whole interval within "
        f"± {100 * margin:g} points. *Not a test*: the experiment could not tell.",
        "",
        *(f"- `{name}`: {_counts(table)}." for name, table in ledgers.items()),
        "",
        "| primary claim | student | paper | "
        + " | ".join(f"`{name}` | p | verdict" for name in names)
        + " |",
        "|---|---|---:|" + "---:|---:|---|" * len(names),
    ]
    order = [row for table in ledgers.values() for row in table.loc[table["primary"], "id"]]
    tables = [_primary(table) for table in ledgers.values()]
    ran = {key[:-1]: key[-1] for table in tables for key in table.index if key[-1]}
    for table in tables:  # what has not been run stands beside what has
        table.index = pd.MultiIndex.from_tuples(
            [key if key[-1] else (*key[:-1], ran.get(key[:-1], "")) for key in table.index]
        )
    rows = pd.concat(tables, axis=1).fillna("")
    rows = rows.loc[sorted(rows.index, key=lambda key: order.index(key[0]))]
    lines += ["| " + " | ".join([*key[1:-1], *cells]) + " |" for key, *cells in rows.itertuples()]
    return "\n".join(lines)


def _primary(table: pd.DataFrame) -> pd.DataFrame:
    """Texts "here", "p_adjusted", "verdict" by id, claim, student, paper's text and experiment."""
    rows = table[table["primary"]]
    texts = ledger.shown(rows).assign(id=rows["id"], experiment=rows["experiment"])
    texts["verdict"] = texts["verdict"].replace("confirmed", "**confirmed**")
    keys = ["id", "claim", "student", "paper", "experiment"]
    return texts.set_index(keys)[["here", "p_adjusted", "verdict"]]


def _counts(table: pd.DataFrame) -> str:
    """How many verdicts of each kind, the primary claims apart from the exploratory ones."""
    parts = []
    for name, is_primary in (("primary", True), ("exploratory", False)):
        rows = table[table["primary"] == is_primary]
        counts = rows["verdict"].value_counts().reindex(VERDICTS).dropna().astype(int)
        parts.append(f"{name} " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    return "; ".join(parts)


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
