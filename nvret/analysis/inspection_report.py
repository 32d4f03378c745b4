"""The report on mined negatives: one HTML file that asks nothing of any network."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nvret import __version__
from nvret.analysis import ceilings, inspection_figures, suspects
from nvret.analysis.inspection import Inspection
from nvret.study.mixtures import hashed

HUBS = 8
NAMES = {"perc-pos": "Percentage of the positive's score", "margin-pos": "Margin below it"}


@cache
def environment() -> Environment:
    """Templates of the package; everything that is put into one is escaped."""
    made = Environment(
        loader=PackageLoader("nvret.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["share"] = share
    made.filters["number"] = lambda value: f"{value:,}"
    made.filters["score"] = lambda value: f"{value:.3f}"
    return made


def share(value: float) -> str:
    """A share as per cent, with a decimal where it is small.

    >>> share(0.5), share(0.0123), share(float("nan"))
    ('50 %', '1.2 %', '–')
    """
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.{1 if abs(value) < 0.3 else 0}f} %"


def page(found: Inspection, *, suspicious: int = 30, sample: int = 40) -> str:
    """The report as HTML.

    Args:
        suspicious: rows of the table of suspicious negatives.
        sample: pairs to browse, chosen by a hash of their ids.
    """
    template = environment().get_template("inspect.html")
    return template.render(
        found=found,
        version=__version__,
        title=f"Mined negatives of {found.dataset.name}",
        findings=findings(found),
        figures=_figures(found),
        suspicious=[_case(found, row) for _, row in found.suspicious(suspicious).iterrows()],
        suspicious_all=len(found.suspicious(len(found.rows))),
        sample=_sample(found, sample),
        hubs=_hubs(found),
        hub_limit=suspects.hub_limit(len(found.dataset.queries)),
        suggestions=[_suggestion(found, family) for family in NAMES],
        facts=_flat(found.facts),
        run=suspects.RUN,
        similar=suspects.SIMILAR,
        least=ceilings.LEAST,
        draws=ceilings.DRAWS,
    )


def findings(found: Inspection) -> list[tuple[str, str]]:
    """What to know first: (kind, sentence), kind one of "good", "look", "note"."""
    counts, rows = found.counts, found.rows
    said = []
    labelled = int(rows["labelled"].sum())
    if labelled:
        said.append(("look", f"{labelled:,} negatives are labelled relevant for their query."))
    if found.hidden is not None:
        rate = found.hidden.rate
        said.append(
            (
                "look" if found.hidden.false else "good",
                f"Hidden labels know {found.hidden.false:,} of {found.hidden.negatives:,} "
                f"negatives of {found.hidden.queries:,} queries to be answers: {share(rate.value)} "
                f"(95 % interval {share(rate.low)} to {share(rate.high)}), a lower bound.",
            )
        )
    by_text = int(rows[suspects.TEXT].any(axis=1).sum())
    if by_text:
        said.append(("look", f"{by_text:,} share much of their positive's wording."))
    else:
        said.append(("good", "None shares much of its positive's wording."))
    above = counts["above"] / counts["negatives"]
    sentence = f"{counts['above']:,} ({share(above)}) score at or above their positive"
    said.append(("look" if above > 0.01 else "good", f"{sentence}, by this teacher."))
    if counts["short"]:
        said.append(
            (
                "look" if counts["empty"] else "note",
                f"{counts['short']:,} of {counts['pairs']:,} pairs have fewer than "
                f"{counts['asked']} negatives; {counts['empty']:,} have none.",
            )
        )
    else:
        said.append(("good", f"Every pair has its {counts['asked']} negatives."))
    top = found.hubs.iloc[0]
    limit = suspects.hub_limit(len(found.dataset.queries))
    hubs = int((found.hubs["queries"] >= limit).sum())
    said.append(
        (
            "note",
            f"{counts['passages']:,} different passages stand in {counts['negatives']:,} places; "
            f"{hubs:,} are mined for {limit:,} queries or more, one for {int(top['queries']):,}.",
        )
    )
    return said + [("look", warning) for warning in found.warnings]


def _figures(found: Inspection) -> list[dict[str, Any]]:
    rows = found.rows
    bounded = bool(np.isfinite(rows["room"]).all())
    middle = rows[["score", "positive_score", "ratio"]].median()
    drawn = [
        (
            "scores",
            "Scores",
            inspection_figures.scores(found),
            f"Median of the positives {middle['positive_score']:.3f}, of the negatives "
            f"{middle['score']:.3f}. Positives of pairs without negatives are not in the table.",
        ),
        (
            "ratios",
            "Negative beside its positive",
            inspection_figures.ratios(found),
            f"Half of the negatives score {share(middle['ratio'])} of their positive or less.",
        ),
        (
            "room",
            "Room below the ceiling" if bounded else "Distance to the positive",
            inspection_figures.room(found),
            "A pile at 0 says that the ceiling decides which negatives are taken."
            if bounded
            else "The method sets no ceiling; left of the line a negative beats its positive.",
        ),
        *(
            (
                f"survival-{family}",
                f"What a {name} would keep",
                inspection_figures.survival(found, family),
                "Of this table: mining anew fills the free places with the next candidates. "
                "Stricter to the right."
                + (
                    " The line is the suggestion, the band its interval."
                    if found.suggestions[family].parameter is not None
                    else ""
                ),
            )
            for family, name in (("perc-pos", "percentage"), ("margin-pos", "margin"))
        ),
        (
            "hubs",
            "The same passage for many queries",
            inspection_figures.hubs(found),
            "A steep start says that few passages serve as negatives for many queries.",
        ),
    ]
    return [
        {
            "name": name,
            "title": title,
            "text": text,
            "svg": Markup(inspection_figures.svg(fig, name)),
        }
        for name, title, fig, text in drawn
    ]


def _case(found: Inspection, row: pd.Series) -> dict[str, Any]:
    """A negative with its query and positive, ready to be read."""
    data, texts = found.dataset, found.dataset.passages
    query, positive, negative = (int(row[name]) for name in ("query", "positive", "negative"))
    alike = row[suspects.TEXT].any()
    return {
        "query": data.query_texts[query],
        "query_id": data.queries["id"][query].as_py(),
        "positive": texts[positive],
        "positive_id": data.corpus["id"][positive].as_py(),
        "negative": texts[negative],
        "negative_id": data.corpus["id"][negative].as_py(),
        "run": suspects.longest_run(texts[positive], texts[negative]) if alike else None,
        "reasons": suspects.reasons(row),
        "row": row,
    }


def _sample(found: Inspection, number: int) -> list[list[dict[str, Any]]]:
    """The negatives of some pairs, in rank order; the same pairs whatever the table's order."""
    ids = found.dataset.queries["id"]
    pairs = found.rows.drop_duplicates("pair")
    passages = found.dataset.corpus["id"]
    names = [
        hashed(f"{ids[query].as_py()} {passages[positive].as_py()}")
        for query, positive in pairs[["query", "positive"]].to_numpy().tolist()
    ]
    chosen = pairs["pair"].to_numpy()[np.argsort(names, kind="stable")[:number]]
    groups = found.rows[found.rows["pair"].isin(chosen)].groupby("pair", sort=True)
    return [
        [_case(found, row) for _, row in group.sort_values("rank").iterrows()]
        for _, group in groups
    ]


def _hubs(found: Inspection) -> list[dict[str, Any]]:
    data = found.dataset
    return [
        {
            "id": data.corpus["id"][int(row.negative)].as_py(),
            "text": data.passages[int(row.negative)],
            "queries": int(row.queries),
            "share": row.queries / len(data.queries),
        }
        for row in found.hubs.head(HUBS).itertuples()
    ]


def _suggestion(found: Inspection, family: ceilings.Family) -> dict[str, Any]:
    chosen = found.suggestions[family]

    def shown(value: float) -> str:
        return f"{100 * value:.0f} %" if family == "perc-pos" else f"{value:.4g}"

    flag = "--perc" if family == "perc-pos" else "--margin"
    known = chosen.parameter is not None
    return {
        "name": NAMES[family],
        "known": known,
        "value": shown(chosen.parameter) if known else "no suggestion",
        "interval": f"{shown(chosen.low)} to {shown(chosen.high)}" if known else "",
        "command": f"--method {family} {flag} {chosen.parameter:g}" if known else "",
        "chosen": chosen,
    }


def _flat(facts: dict[str, Any]) -> dict[str, str]:
    """Provenance as (name, value) with inner names joined."""
    table = pd.json_normalize(facts, sep=" ").iloc[0].to_dict() if facts else {}
    return {key.replace("_", " "): str(value) for key, value in sorted(table.items())}
