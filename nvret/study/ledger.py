"""The ledger: every registered claim beside what a profile's results say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from nvret.analysis import looks, statistics
from nvret.study import claims, figures, paper, paths, tables, verdicts
from nvret.study.arms import arms
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.study.verdicts import Decision, NotRun
from nvret.utils import store
from nvret.utils.errors import NvretError

COLUMNS = [
    "id", "claim", "section", "kind", "student", "unit", "paper", "difference", "low", "high",
    "p", "p_holm", "seeds", "queries", "verdict", "note",
]  # fmt: skip
NUMBERS = ["paper", "difference", "low", "high", "p", "p_holm"]
TEACHERS = "02_teachers"  # the teachers' own scores, a table of the study of teachers
SHARES = {  # claims about a share: the table that decides them, and how
    "share-halved": ("09_reductions", verdicts.from_reductions),
    "low-jaccard": ("03_jaccard", verdicts.from_overlaps),
}
SWEEPS = "04_rq3_thresholds"  # whose notebook shows curves instead of a forest plot


def build(
    settings: Settings,
    registered: claims.Claims,
    results: Mapping[str, Results],
    saved: Mapping[str, pd.DataFrame],
) -> pd.DataFrame:
    """A row for each claim and student (or data set), whatever has been run.

    Args:
        results: by study.
        saved: tables by name, of those that studies save: the teachers' own scores, overlaps,
            reductions of false negatives.
    Returns:
        difference, low, high and paper in NDCG@10, or as shares (``unit``); p_holm adjusts p over
        all rows that have one.
    """

    def decide(claim: claims.AnyClaim, student: str) -> dict[str, Decision]:
        """By student or data set, what was decided."""
        if claim.kind in SHARES:
            name, from_table = SHARES[claim.kind]
            if name not in saved:
                raise NotRun(f"no table {name}")
            return from_table(claim, saved[name])
        if claim.study not in results:
            raise NotRun(f"no scores of {claim.study}")
        own = results[claim.study], settings, registered.margin, saved.get(TEACHERS)
        return {student: verdicts.decide(claim, student, *own)}

    rows = []
    for claim in registered.claims:
        common = claim.model_dump(include={"id", "claim", "section", "kind"})
        common |= {"unit": "share" if claim.kind in SHARES else "points", "student": ""}
        common |= {"paper": paper.value(claim.paper)}
        if isinstance(claim, claims.NotTestable):
            rows.append(common | vars(Decision("not testable here", note=claim.reason)))
            continue
        for student in _students(claim, settings):
            try:
                for name, decision in decide(claim, student).items():
                    note = "; ".join(filter(None, [decision.note, claim.note]))
                    rows.append(common | vars(decision) | {"student": name, "note": note})
            except NotRun as error:
                missing = Decision("not run", note=str(error))
                rows.append(common | vars(missing) | {"student": student})
    table = pd.DataFrame(rows, columns=COLUMNS)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = statistics.holm(table.loc[tested, "p"].tolist())
    return table.astype({"paper": float})


def _students(claim: claims.AnyClaim, settings: Settings) -> list[str]:
    """The claim's students that the profile's study has; the first one where it has none."""
    if not isinstance(claim, claims.Trained):
        return [""]
    known = set()
    if claim.study in settings.studies:
        known = {arm.student for arm in arms(settings, claim.study)}
    return [name for name in claim.students if name in known] or claim.students[:1]


def load(settings: Settings, study: str | None = None) -> pd.DataFrame:
    """The ledger of a profile, from the scores and tables of its results folder.

    Args:
        study: only the rows that this study decides; their ``p_holm`` adjusts over these alone.
    """
    registered = claims.load()
    if study is not None:
        own = [claim for claim in registered.claims if getattr(claim, "study", None) == study]
        registered = registered.model_copy(update={"claims": own})
    return build(settings, registered, *_read(settings))


def _read(settings: Settings) -> tuple[dict[str, Results], dict[str, pd.DataFrame]]:
    """Scores by study and tables by name, of those that the results folder holds."""
    scores = {study: paths.scores_path(settings, study) for study in settings.studies}
    names = [TEACHERS, *(name for name, _ in SHARES.values())]
    files = {name: paths.table_path(settings, name) for name in names}
    return (
        {study: Results.load(path) for study, path in scores.items() if path.is_file()},
        {name: pd.read_csv(path) for name, path in files.items() if path.is_file()},
    )


def save(settings: Settings, ledger: pd.DataFrame) -> None:
    """Write ``tables/10_claims.csv`` and ``claims.json``."""
    paths.save_table(settings, "10_claims", ledger)
    rows = ledger.to_dict("records")
    for row in rows:
        for name in NUMBERS:
            row[name] = round(row[name], 6) if math.isfinite(row[name]) else None
    target = paths.results_folder(settings) / "claims.json"
    store.write_json(target, {"margin": claims.load().margin, "claims": rows})


def read(folder: Path) -> tuple[pd.DataFrame, float]:
    """The ledger that ``save`` wrote, and the smallest difference that matters.

    Args:
        folder: ``results/<profile>``.
    Raises:
        NvretError: the profile has not been run.
    """
    path = folder / "claims.json"
    if not path.is_file():
        raise NvretError(f"{path}: no such file; run the profile first")
    content = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(content["claims"], columns=COLUMNS)
    return table.astype(dict.fromkeys(NUMBERS, float)), content["margin"]


def write(settings: Settings) -> pd.DataFrame:
    """Everything that follows from a profile's scores alone: tables, ledger, and their figures.

    Raises:
        NvretError: there are no scores.
    """
    results, saved = _read(settings)
    if not results:
        folder = paths.results_folder(settings) / "scores"
        raise NvretError(f"{folder} holds no scores; run the profile first")
    for study, scores in results.items():
        number = study[:2]
        differences = tables.differences(scores, settings.studies[study].reference)
        paths.save_table(settings, f"{number}_means", tables.means(scores))
        paths.save_table(settings, f"{number}_differences", differences)
        for student in dict.fromkeys(scores.arms["student"]) if study != SWEEPS else ():
            figure = figures.differences(differences, student)
            paths.save_figure(settings, f"{number}_differences_{student}", figure)
    ledger = build(settings, claims.load(), results, saved)
    save(settings, ledger)
    paths.save_figure(settings, "10_ledger", figures.ledger(ledger))
    return ledger


def shown(ledger: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader needs, as text: points of NDCG@10, or percent."""

    def number(value: float, unit: str) -> str:
        if not math.isfinite(value):
            return "–"
        return f"{100 * value:.0f} %" if unit == "share" else f"{100 * value:+.2f}"

    def here(row: Any) -> str:
        value, low, high = (number(x, row.unit) for x in (row.difference, row.low, row.high))
        return f"{value} [{low}, {high}]" if {low, high} != {"–"} else value

    rows = list(ledger.itertuples())
    texts = {"paper": [number(row.paper, row.unit) for row in rows], "here": [*map(here, rows)]}
    return ledger[["claim", "student"]].assign(**texts, verdict=ledger["verdict"])


def styled(ledger: pd.DataFrame) -> Styler:
    """``shown``, without an index, to end a notebook's cell with."""
    return shown(ledger).assign(note=ledger["note"]).pipe(looks.Table).hide()


def more(ledger: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The undecided rows, with how many times the seeds and queries would decide them.

    If the truth is what was found, the interval's half-width, which falls with the root of seeds
    and queries together, has to fall below the distance to the nearest value that decides:
    infinite where the truth is right at that bound.
    """
    rows = ledger[(ledger["verdict"] == "undecided") & ledger["low"].notna()]
    bound = rows["kind"].map({"not-worse": -margin, "no-gain": margin}).astype(float)
    above, below = (rows["difference"] - bound.fillna(end) for end in (0.0, margin))
    reach = np.maximum(above, -below)
    factor = ((rows["high"] - rows["low"]) / 2 / reach) ** 2
    rows = rows.assign(times=factor.where(reach > 0, math.inf))
    return rows[["claim", "student", "seeds", "queries", "difference", "low", "high", "times"]]
