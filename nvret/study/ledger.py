"""The ledger: every registered claim beside what a profile's results say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from nvret.analysis import statistics
from nvret.study import claims, figures, forest, paper, report, verdicts
from nvret.study.arms import arms
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.study.selection import NotRun
from nvret.study.verdicts import Decision
from nvret.utils import store
from nvret.utils.errors import NvretError

COLUMNS = [
    "id", "claim", "section", "kind", "student", "unit", "paper", "difference", "low", "high",
    "p", "p_holm", "seeds", "queries", "verdict", "note",
]  # fmt: skip
UNTESTED = ("not run", "not testable here")
SHARES = ("share-halved", "low-jaccard")
TEACHERS = "02_teachers"  # the teachers' own scores, a table of the study of teachers

SWEEPS = "04_rq3_thresholds"


def build(
    settings: Settings,
    registered: claims.Claims,
    results: Mapping[str, Results],
    tables: Mapping[str, pd.DataFrame],
) -> pd.DataFrame:
    """A row for each claim and student (or data set), whatever has been run.

    Args:
        results: by study.
        tables: by name, of those that studies save: the teachers' own scores, overlaps, audit.
    Returns:
        difference, low, high and paper in NDCG@10, or as shares (``unit``); p_holm adjusts p over
        all rows that have one.
    """
    found = []
    for claim in registered.claims:
        for where, decision in _decisions(claim, settings, registered.margin, results, tables):
            row = verdicts.as_row(decision)
            if row["verdict"] not in UNTESTED:
                row["note"] = "; ".join(filter(None, [row["note"], claim.note]))
            found.append(
                row
                | {"id": claim.id, "claim": claim.claim, "section": claim.section}
                | {"kind": claim.kind, "student": where}
                | {"unit": "share" if claim.kind in SHARES else "points"}
                | {"paper": paper.value(claim.paper)}
            )
    table = pd.DataFrame(found, columns=[name for name in COLUMNS if name != "p_holm"])
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = statistics.holm(table.loc[tested, "p"].tolist())
    return table[COLUMNS].astype({"paper": float})


def load(settings: Settings) -> pd.DataFrame:
    """The ledger of a profile, from its results folder."""
    return build(settings, claims.load(), *_read(settings))


def of_study(settings: Settings, study: str) -> pd.DataFrame:
    """The rows that one study decides; their ``p_holm`` adjusts over these rows alone."""
    registered = claims.load()
    mine = [claim for claim in registered.claims if getattr(claim, "study", None) == study]
    return build(settings, registered.model_copy(update={"claims": mine}), *_read(settings))


def save(settings: Settings, ledger: pd.DataFrame) -> None:
    """Write ``tables/10_claims.csv`` and ``claims.json``."""
    report.save_table(settings, "10_claims", ledger)
    rows = [{key: _plain(value) for key, value in row.items()} for row in ledger.to_dict("records")]
    target = report.results_folder(settings) / "claims.json"
    store.write_json(target, {"margin": claims.load().margin, "claims": rows})


def write(settings: Settings) -> pd.DataFrame:
    """Everything that follows from a profile's scores alone: tables, ledger, and their figures.

    Raises:
        NvretError: there are no scores.
    """
    results, tables = _read(settings)
    if not results:
        folder = report.results_folder(settings) / "scores"
        raise NvretError(f"{folder} holds no scores; run the profile first")
    for study, found in results.items():
        against = settings.studies[study].reference
        report.save_table(settings, f"{study[:2]}_means", report.means(found))
        differences = report.differences(found, against)
        report.save_table(settings, f"{study[:2]}_differences", differences)
        if study == SWEEPS:  # whose notebook shows curves instead
            continue
        for student in dict.fromkeys(found.arms["student"]):
            figure = figures.differences(differences, student)
            report.save_figure(settings, f"{study[:2]}_differences_{student}", figure)
    ledger = build(settings, claims.load(), results, tables)
    save(settings, ledger)
    report.save_figure(settings, "10_ledger", forest.draw(ledger))
    return ledger


def shown(ledger: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader needs, as text: points of NDCG@10, or percent."""
    return pd.DataFrame(
        {
            "claim": ledger["claim"],
            "student": ledger["student"],
            "paper": [_number(row.paper, row.unit) for row in ledger.itertuples()],
            "here": [_interval(row) for row in ledger.itertuples()],
            "verdict": ledger["verdict"],
        }
    )


def styled(ledger: pd.DataFrame) -> Styler:
    """``shown``, without an index, to end a notebook's cell with."""
    return shown(ledger).assign(note=ledger["note"]).style.hide()


def more(ledger: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The undecided rows, with how many times the seeds and queries would decide them.

    If the truth is what was found, the interval's half-width, which falls with the root of seeds
    and queries together, has to fall below the distance to the nearest value that decides.
    """
    rows = ledger[(ledger["verdict"] == "undecided") & ledger["low"].notna()].copy()
    rows["times"] = [times(row, margin) for row in rows.itertuples()]
    return rows[["claim", "student", "seeds", "queries", "difference", "low", "high", "times"]]


def times(row: Any, margin: float) -> float:
    """Factor on seeds and queries of one row; infinite where the truth is right at the bound.

    >>> from types import SimpleNamespace as Row
    >>> times(Row(kind="difference", difference=0.004, low=-0.004, high=0.012), margin=0.002)
    4.0
    """
    bounds = {"not-worse": (-margin, -margin), "no-gain": (margin, margin)}
    zero, short_of = bounds.get(row.kind, (0.0, margin))
    reach = max(row.difference - zero, short_of - row.difference)
    half = (row.high - row.low) / 2
    return (half / reach) ** 2 if reach > 0 else math.inf


def _decisions(
    claim: claims.AnyClaim,
    settings: Settings,
    margin: float,
    results: Mapping[str, Results],
    tables: Mapping[str, pd.DataFrame],
) -> Iterator[tuple[str, Decision]]:
    """(student or data set, what was decided) for each row of a claim."""
    if isinstance(claim, claims.NotTestable):
        yield "", Decision("not testable here", note=claim.reason)
    elif isinstance(claim, claims.Trained):
        for student in _students(claim, settings):
            try:
                if claim.study not in results:
                    raise NotRun(f"no scores of {claim.study}")
                yield (
                    student,
                    verdicts.decide(
                        claim, student, results[claim.study], settings, margin, tables.get(TEACHERS)
                    ),
                )
            except NotRun as error:
                yield student, Decision("not run", note=str(error))
    else:
        name, read = {
            "share-halved": ("09_reductions", verdicts.from_reductions),
            "low-jaccard": ("03_jaccard", verdicts.from_overlaps),
        }[claim.kind]
        try:
            if name not in tables:
                raise NotRun(f"no table {name}")
            yield from read(claim, tables[name]).items()
        except NotRun as error:
            yield "", Decision("not run", note=str(error))


def _students(claim: claims.Trained, settings: Settings) -> list[str]:
    """The claim's students that the profile's study has; the first one where it has none."""
    study = settings.studies.get(claim.study)
    there = {arm.student for arm in arms(settings, claim.study)} if study else set()
    return [name for name in claim.students if name in there] or claim.students[:1]


def _read(settings: Settings) -> tuple[dict[str, Results], dict[str, pd.DataFrame]]:
    """Scores by study and tables by name, of those that the results folder holds."""
    paths = {study: report.scores_path(settings, study) for study in settings.studies}
    found = {study: Results.load(path) for study, path in paths.items() if path.is_file()}
    folder = report.results_folder(settings) / "tables"
    names = [TEACHERS, "03_jaccard", "09_reductions"]
    files = {name: folder / f"{name}.csv" for name in names}
    return found, {name: pd.read_csv(path) for name, path in files.items() if path.is_file()}


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f} %" if unit == "share" else f"{100 * value:+.2f}"


def _interval(row: Any) -> str:
    text = _number(row.difference, row.unit)
    if math.isnan(row.low):
        return text
    return f"{text} [{_number(row.low, row.unit)}, {_number(row.high, row.unit)}]"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
