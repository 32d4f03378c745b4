"""The README's results: written from the profiles' ledgers, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nvret.study import ledger, tables
from nvret.study.verdicts import VERDICTS
from nvret.utils import store
from nvret.utils.errors import NvretError

PROFILES = ("quick", "cpu")  # that the README shows, where they have been run


# Beside the primary claims: one a topic, chosen for the topic and not for what came out
OTHERS = {
    "better-teachers": "head",
    "perc-beats-margin": "head",
    "perc-halves-false-negatives": "nq",
    "cleaner-at-equal-hardness": "head",
    "perc-beats-naive-in-batch": "static",
    "mined-beats-random-in-batch": "static",
}


def findings(folder: Path, rows: pd.DataFrame) -> list[str]:
    """What a profile found, in sentences that hold whatever it found.

    Args:
        folder: ``results/<profile>``; a sentence whose table is not there is left out.
        rows: its ledger.
    """
    found = []
    shown = ledger.shown(rows).assign(id=rows["id"]).set_index(["id", "student"])

    def claim(name: str, student: str, text: str) -> None:
        if (name, student) in shown.index and shown.at[(name, student), "here"] != "–":
            found.append(text.format(**shown.loc[(name, student)]))

    claim("perc-beats-naive", "transformer",
          "**Against naive mining.** Trained on mined negatives alone, a transformer changes by "
          "{here} points of NDCG@10 where a ceiling of 95 % takes the place of naive mining "
          "(the paper: {paper}): *{verdict}*.")  # fmt: skip
    claim("perc-beats-random", "transformer",
          "**Against random negatives.** With the same ceiling it is {here} points from what "
          "random negatives give (the paper: {paper}): *{verdict}*.")  # fmt: skip
    rates = folder / "tables" / "09_rates.csv"
    if rates.is_file():
        table = pd.read_csv(rates, index_col=["dataset", "near-duplicates", "method"])["rate"]
        naive, perc = (table["nq", "kept", tables.PLAIN[name]] for name in ("naive", "perc-pos"))
        found.append(
            f"**Hidden answers.** Where known answers of NQ are hidden, {100 * naive:.1f} % of the "
            f"naive negatives are such answers, and {100 * perc:.1f} % of those under the ceiling."
        )
    claim("perc-beats-naive-in-batch", "static",
          "**With the batch's other passages** as negatives too, the ceiling is {here} points from "
          "naive mining for a static student: *{verdict}*.")  # fmt: skip
    corpora = folder / "tables" / "06_corpora.csv"
    if corpora.is_file():
        rows = pd.read_csv(corpora).query(
            "student == 'static' and setting == 'in-batch' and corpus in ('own', 'full') and "
            "metric == 'ndcg_at_10' and difference == 'perc-pos − random'"
        )
        rows = rows.sort_values("passages").assign(shown=tables.cells(rows, "value", "+.2f"))
        parts = [f"{row.shown} among {row.passages:,}" for row in rows.itertuples()]
        found.append(
            "**Small and large corpus.** There mined negatives under the ceiling are, for the same "
            f"questions, {' and '.join(parts)} passages from random ones."
        )
    return [f"- {sentence}" for sentence in found]


def section(results: Path) -> str:
    """Markdown of the profiles' results: findings, a table of claims, and verdicts counted.

    A row is a claim of one profile, since two profiles are two experiments: all of `OTHERS` from
    the first one, and the primary claims also from another that has decided all of them.

    Args:
        results: the folder ``results``.
    Raises:
        NvretError: none of the profiles has a ledger that can be read.
    """
    ledgers, margin = ledger.read_all(results, PROFILES)
    primary = {name: table[table["primary"]] for name, table in ledgers.items()}
    first, *others = ledgers
    names = [first, *(one for one in others if "not run" not in set(primary[one]["verdict"]))]
    rows = pd.concat([_chosen(ledgers[name], name, all=name == first) for name in names])
    order = list(dict.fromkeys([*primary[first]["id"], *OTHERS]))
    rows = rows.sort_values("id", key=lambda ids: ids.map(order.index), kind="stable")
    again = rows["id"].duplicated()
    rows[["claim", "student", "paper"]] = rows[["claim", "student", "paper"]].mask(again, "")
    shown = ["claim", "student", "profile", "paper", "here", "p_adjusted", "verdict"]
    largest = names[-1]
    return "\n".join([
        *findings(results / largest, ledgers[largest]),
        "",
        f"That is `{largest}`. Twelve claims, the six primary ones first: points of NDCG@10 on the "
        "in-domain test set, 95 % interval over seeds and questions, p adjusted (primary: Holm; "
        "others: Benjamini-Hochberg). *Confirmed*: above 0, and half of the paper's difference. "
        f"*No effect*: the whole interval within ± {100 * margin:g} points. *Not a test*: the "
        "experiment could not tell.",
        "",
        "| claim | student | profile | paper | here | p | verdict |",
        "|---|---|---|---:|---:|---:|---|",
        *("| " + " | ".join(row) + " |" for row in rows[shown].itertuples(index=False)),
        "",
        *(f"All claims of `{name}`: {_counts(ledgers[name])}." for name in names),
    ])  # fmt: skip


def _chosen(table: pd.DataFrame, name: str, *, all: bool) -> pd.DataFrame:
    """A profile's primary claims, or all that the README shows, as texts, by id."""
    rows = table[table["primary"] | (all & (table["id"].map(OTHERS) == table["student"]))]
    texts = ledger.shown(rows).assign(id=rows["id"], profile=f"`{name}`")
    texts["verdict"] = texts["verdict"].replace("confirmed", "**confirmed**")
    return texts


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
