"""The README's results: written from the profiles' ledgers, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nvret.study import ledger
from nvret.utils import store
from nvret.utils.errors import NvretError

PROFILES = ("quick", "cpu")  # that the README shows, where they have been run
HEADLINE = [
    "perc-beats-naive", "margin-beats-naive", "shifted-beats-naive", "mined-beats-random",
    "perc-halves-false-negatives",
]  # fmt: skip


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
    ledgers, margins = zip(*(ledger.read(results / name) for name in names), strict=True)
    lines = [
        "Points of NDCG@10, mean of the test sets, 95 % interval over seeds and questions. "
        "*Reproduced*: the whole interval has the claim's sign. *Not reproduced*: the whole "
        f"interval lies below {100 * margins[0]:g} points, the smallest difference that matters.",
        "",
        *(f"- `{name}`: {_counts(table)}." for name, table in zip(names, ledgers, strict=True)),
        "",
        "| claim | student or set | paper | "
        + " | ".join(f"`{name}` | verdict" for name in names)
        + " |",
        "|---|---|---:|" + "---:|---|" * len(names),
    ]
    rows = pd.concat(map(_headline, ledgers), axis=1).fillna({"here": "–", "verdict": "not run"})
    rows = rows.sort_index(level="id", key=lambda ids: ids.map(HEADLINE.index), kind="stable",
                           sort_remaining=False)  # fmt: skip
    lines += ["| " + " | ".join([*key[1:], *cells]) + " |" for key, *cells in rows.itertuples()]
    return "\n".join(lines)


def _headline(table: pd.DataFrame) -> pd.DataFrame:
    """Texts "here" and "verdict" by id, claim, student and the paper's text."""
    rows = table[table["id"].isin(HEADLINE)]
    texts = ledger.shown(rows).assign(id=rows["id"])
    texts["verdict"] = texts["verdict"].replace("reproduced", "**reproduced**")
    return texts.set_index(["id", "claim", "student", "paper"])


def _counts(table: pd.DataFrame) -> str:
    """How many verdicts of each kind, and what is left when all are taken together."""
    from scipy.stats import false_discovery_control

    counts = table["verdict"].value_counts()
    tests = table[table["p_holm"].notna()]
    reproduced = tests["verdict"] == "reproduced"
    holm = (reproduced & (tests["p_holm"] <= 0.05)).sum()
    false_discovery = false_discovery_control(tests["p"].astype(float)) <= 0.05
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    return (
        f"{each}; adjusted for all {len(tests)} tests together, {holm} (Holm) or "
        f"{(reproduced & false_discovery).sum()} (Benjamini-Hochberg) stay reproduced"
    )


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
