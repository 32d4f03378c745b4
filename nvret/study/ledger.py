"""The ledger: every registered claim beside what a profile's results say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy.stats import false_discovery_control

from nvret.analysis import looks, statistics
from nvret.study import claims, forest, paper, paths, tables, verdicts
from nvret.study.arms import arms
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.study.selection import NotRun
from nvret.study.verdicts import Decision
from nvret.utils import store
from nvret.utils.errors import NvretError

COLUMNS = [
    "id", "claim", "table", "section", "kind", "study", "primary", "student", "unit", "paper",
    "difference", "low", "high", "p", "p_adjusted", "detectable", "seeds", "queries", "verdict",
    "note",
]  # fmt: skip
NUMBERS = ["paper", "difference", "low", "high", "p", "p_adjusted", "detectable"]
TEACHERS = "02_teachers"  # the teachers' own scores, a table of the study of teachers
SHARES = {  # claims about a share: the table that decides them, and how
    "share-halved": ("09_reductions", verdicts.from_reductions),
    "low-jaccard": ("03_jaccard", verdicts.from_overlaps),
}
# Whose notebooks show curves, no forest plot
SWEEPS = ("04_rq3_thresholds", "05_rq3_sampling", "13_hardness")


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
        difference, low, high, detectable and paper in NDCG@10, or as shares (``unit``); p_adjusted
        by Holm among the primary claims, by Benjamini and Hochberg among the others.
    """

    def decide(claim: claims.AnyClaim, student: str) -> dict[str, Decision]:
        """By student or data set, what was decided."""
        if isinstance(claim, claims.NotTestable):
            return {"": Decision("not testable here", note=claim.reason)}
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
        names = {"id", "claim", "table", "section", "kind", "study", "primary"}
        common = {"unit": "share" if claim.kind in SHARES else "points", "study": ""}
        common |= claim.model_dump(include=names)
        for student in _students(claim, settings):
            try:
                for name, decision in decide(claim, student).items():
                    note = "; ".join(filter(None, [decision.note, claim.note]))
                    rows.append(common | vars(decision) | {"student": name, "note": note})
            except NotRun as error:
                missing = Decision("not run", note=str(error), paper=paper.value(claim.paper))
                rows.append(common | vars(missing) | {"student": student})
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"paper": float})
    table["p_adjusted"] = np.nan
    for primary, adjust in ((True, statistics.holm), (False, false_discovery_control)):
        tested = table["p"].notna() & (table["primary"] == primary)
        if tested.any():
            table.loc[tested, "p_adjusted"] = adjust(table.loc[tested, "p"].astype(float))
    return table


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
        study: only the rows that this study decides; ``p_adjusted``, which takes all rows of the
            ledger, is left open.
    """
    registered = claims.load()
    if study is None:
        return build(settings, registered, *_read(settings))
    own = [claim for claim in registered.claims if getattr(claim, "study", None) == study]
    registered = registered.model_copy(update={"claims": own})
    return build(settings, registered, *_read(settings, study)).assign(p_adjusted=np.nan)


def _read(
    settings: Settings, study: str | None = None
) -> tuple[dict[str, Results], dict[str, pd.DataFrame]]:
    """Scores by study, of one or all, and tables by name: those that the results folder holds."""
    names = [name for name in settings.studies if study in (None, name)]
    scores = {name: paths.scores_path(settings, name) for name in names}
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
        NvretError: the profile has not been run, or not since the ledger has these columns.
    """
    path = folder / "claims.json"
    if not path.is_file():
        raise NvretError(f"{path}: no such file; run the profile first")
    content = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(content["claims"])
    if missing := [name for name in COLUMNS if name not in table]:
        raise NvretError(f"{path} has no {', '.join(missing)}; run the profile again")
    table = table[COLUMNS]
    return table.astype(dict.fromkeys(NUMBERS, float)), content["margin"]


def read_all(results: Path, profiles: Sequence[str]) -> tuple[dict[str, pd.DataFrame], float]:
    """The ledgers of those of these profiles that were run, and their margin.

    Raises:
        NvretError: no profile was run, or not since a ledger has these columns; two margins.
    """
    run = [name for name in profiles if (results / name / "claims.json").is_file()]
    if not run:
        raise NvretError(f"{results} has no ledger of {' or '.join(profiles)}; run a profile first")
    ledgers, margins = zip(*(read(results / name) for name in run), strict=True)
    if older := [name for name, one in zip(run, margins, strict=True) if one != margins[0]]:
        raise NvretError(f"{results}: {', '.join(older)} had another margin; run it again")
    return dict(zip(run, ledgers, strict=True)), margins[0]


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
        for student in dict.fromkeys(scores.arms["student"]) if study not in SWEEPS else ():
            figure = forest.differences(differences, student)
            paths.save_figure(settings, f"{number}_differences_{student}", figure)
    ledger = build(settings, claims.load(), results, saved)
    save(settings, ledger)
    paths.save_table(settings, "10_power", power(ledger))
    paths.save_figure(settings, "10_ledger", forest.ledger(ledger))
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

    def level(p: float) -> str:
        return "" if math.isnan(p) else f"{p:.2g}" if p >= 0.001 else "< 0.001"

    rows = list(ledger.itertuples())
    return ledger[["claim", "student"]].assign(
        paper=[number(row.paper, row.unit) for row in rows], here=[here(row) for row in rows],
        p=ledger["p"].map(level), p_adjusted=ledger["p_adjusted"].map(level),
        verdict=ledger["verdict"],
    )  # fmt: skip


def styled(ledger: pd.DataFrame) -> Styler:
    """``shown``, without an index, to end a notebook's cell with."""
    table = shown(ledger).assign(note=ledger["note"])
    kind = ledger["primary"].map({True: "primary", False: "exploratory"})
    table.insert(2, "kind", kind.where(ledger["p"].notna(), ""))
    if (table["p_adjusted"] == "").all():
        table = table.drop(columns="p_adjusted")
    return table.pipe(looks.Table).hide()


def power(ledger: pd.DataFrame) -> pd.DataFrame:
    """What difference each study could have detected, primary claims first.

    ``detectable`` is what such an experiment tells from 0 four times in five, at a two-sided level
    of 5 %; ``paper`` the difference that the paper reports.
    """
    rows = ledger[ledger["detectable"].notna()]
    rows = rows.sort_values(["primary", "study"], ascending=[False, True], kind="stable")
    names = ["primary", "study", "student", "id", "seeds", "queries", "detectable", "paper"]
    large = (rows["detectable"] <= rows["paper"]).astype(object)
    large = large.where(rows["paper"].notna(), "")
    return rows[names].assign(**{"detects the paper's": large}).reset_index(drop=True)


def turning(ledger: pd.DataFrame, margin: float) -> pd.Series:
    """What would have changed the verdict of each row: a sentence, from its numbers."""
    return pd.Series([_turn(row, margin) for row in ledger.itertuples()], ledger.index, dtype=str)


def _turn(row: Any, margin: float) -> str:
    published = None if math.isnan(row.paper) else row.paper
    goal, within = 100 * statistics.goal(margin, published), f"{100 * margin:.2f}"
    half = "half of the paper's" if published else "the margin"
    if row.verdict in ("not run", "not testable here"):
        return "A run of its study." if row.verdict == "not run" else ""
    if row.kind not in ("difference", "worst", "order", "inner-optimum", "slope"):
        return "An interval on the other side of the claim's bound."
    reached = f"A difference of {goal:.2f} points or more ({half})"
    match row.verdict:
        case "confirmed":
            change = "an interval that reaches 0"
            if published:
                change += f", a half-width above {100 * published:.2f} points"
            return f"A difference below {goal:.2f} points ({half}); {change}."
        case "same sign, smaller":
            return f"{reached}; an interval that reaches 0."
        case "no effect":
            return f"An interval that reaches beyond ± {within} points."
        case "reversed":
            return "An interval that reaches 0."
        case "undecided":
            change = f"or a narrower interval: within ± {within} points, or below 0"
            return f"{reached} with an interval above 0; {change}."
        case "not a test":
            interval = statistics.Interval(row.difference, row.low, row.high)
            word = statistics.verdict(interval, margin, published)
            if word != "not a test":
                return f"What the note names as missing; the interval alone says: {word}."
            half = 50 * (row.high - row.low)
            return f"A half-width of at most {100 * row.paper:.2f} points: it is {half:.2f}."
    raise AssertionError(row.verdict)


def answer(ledger: pd.DataFrame) -> str:
    """Markdown: what these rows say of the question that they decide, and what would change it.

    The first row that was decided speaks, a primary one before the others; the rest are counted.
    """
    decided = ledger[~ledger["verdict"].isin(["not run", "not testable here"])]
    decided = decided.sort_values("primary", ascending=False, kind="stable")
    if decided.empty:
        return "**Answer.** None of these claims has been decided."
    first, text = decided.iloc[0], shown(decided).iloc[0]
    unit = "" if first["unit"] == "share" else " points"
    paper_says = "" if text["paper"] == "–" else f" (the paper: {text['paper']})"
    words = decided["verdict"].iloc[1:].value_counts()
    others = ", ".join(f"{number} {word}" for word, number in words.items())
    return (
        f"**Answer.** {first['claim']}: *{first['verdict']}*, {text['here']}{unit}{paper_says}"
        f"{', ' + first['student'] if first['student'] else ''}."
        + (f" Of the other {len(decided) - 1} rows: {others}." if others else "")
        + f"\n\n**What would change it.** {turning(decided.iloc[:1], claims.load().margin).iloc[0]}"
    )


def more(ledger: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The undecided rows, with how many times the seeds and queries would decide them.

    If the truth is what was found, the interval's half-width, which falls with the root of seeds
    and queries together, has to fall below the distance to the nearest value that decides: 0, the
    margin on either side, or for "not worse" and "no gain" the margin alone: infinite where the
    truth is right at that bound. A slope is left out, since its interval is over teachers.
    """
    rows = ledger[(ledger["verdict"] == "undecided") & ledger["low"].notna()]
    rows = rows[(rows["unit"] == "points") & (rows["kind"] != "slope")]
    size = rows["difference"].abs()
    bound = rows["kind"].map({"not-worse": -margin, "no-gain": margin}).astype(float)
    reach = (rows["difference"] - bound).abs().fillna(np.maximum(size, margin - size))
    factor = ((rows["high"] - rows["low"]) / 2 / reach.where(reach > 0)) ** 2
    rows = rows.assign(times=factor.fillna(math.inf))
    return rows[["claim", "student", "seeds", "queries", "difference", "low", "high", "times"]]
