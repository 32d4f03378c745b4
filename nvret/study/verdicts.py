"""What the scores of a study say of a claim: which arms it means, and the verdict on them.

The in-domain test sets decide (``Results.primary``). Every claim comes down to links: one arm that
is said to be better than another, with the difference, its interval, and where there is one the
paper's difference between the same two. `statistics.verdict` puts it into a word. A claim of
several links ("each other arm is better") is a chain:

- *reversed* where a link is: of that there are several chances, so that p is adjusted (Holm);
- *not a test* where a link is none, since it can then not be shown;
- *confirmed* where all links are, and *same sign, smaller* where all lie above 0 but some fall
  short: each link is tested at the full level, since all of them have to pass;
- *no effect* where a link has none, adjusted in the same way;
- or else *undecided*.

"Not worse" and "no gain" are about the margin, not about 0 or a size: *confirmed* where the
interval lies on the claim's side of the margin, *reversed* where it lies beyond it. A slope is one
link whose unit is the teacher.

A link is *not a test*, whatever its interval says, without a positive control (no trained arm of
the student lies surely above its base model: what is then ranked is damage), or without bite: where
nothing but negatives differs, the share of them that do, times the difference between naive and
random ones, says how much the scores could differ; below the margin, that does not matter.

Source: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling" (all parts have
to pass); Holm 1979.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from nvret.analysis import statistics
from nvret.analysis.statistics import Interval
from nvret.study import claims, paper
from nvret.study.config import Settings
from nvret.study.scores import Results
from nvret.study.selection import NotRun, Selection, best, short

Verdict = Literal[statistics.Verdict, "not testable here", "not run"]
VERDICTS: tuple[Verdict, ...] = (
    *statistics.Verdict.__args__, "not testable here", "not run",
)  # fmt: skip
SLOPE = 0.1  # of a teacher's NDCG@10, that a slope is told for
ALPHA = 0.05
# Columns of an arm that say which negatives it has, and nothing else of how it is trained
OF_NEGATIVES = {
    "method", "family", "parameter", "teacher", "ensemble", "sampling", "k", "treatment",
}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on; the columns of the ledger.

    The difference is that of the link that decides, in NDCG@10, or a share; ``paper`` is the
    paper's for the same link. p is two-sided, of "no difference" (of "the margin" where the claim
    is about it). ``detectable`` is the difference that such an experiment finds four times in five,
    ``arms`` are all that the claim compares. Queries are summed over the primary sets.
    """

    verdict: Verdict
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan
    seeds: int = 0
    queries: int = 0
    note: str = ""
    paper: float | None = None
    arms: tuple[str, ...] = ()


def decide(
    claim: claims.Trained,
    student: str,
    results: Results,
    settings: Settings,
    margin: float,
    teachers: pd.DataFrame | None = None,
) -> Decision:
    """The verdict on one claim for one student.

    Args:
        margin: the smallest difference that matters, in NDCG@10.
        teachers: columns teacher, dataset, mean: NDCG@10 of the teachers, for a slope, and where
            "best" is asked for.
    Raises:
        NotRun: an arm that the claim needs is missing.
    """
    selection = Selection(results, student, settings, teachers)
    case = Case(selection, margin)
    if isinstance(claim, claims.Pair):
        (better, one), (worse, other) = selection.side(claim.better), selection.side(claim.worse)
        if better == worse:
            raise NotRun(f"one arm on both sides: {short(better)}")
        note = "; ".join(filter(None, [one, other]))
        published = paper.value(claim.paper)
        if claim.kind != "difference":
            return case.on_margin(Link(better, worse, published), claim.kind, note)
        return case.chain([Link(better, worse, published)], note)
    arms = selection.parts(claim)
    if isinstance(claim, claims.Slope):
        return case.slope(arms)
    return case.chain(case.links(claim, arms))


@dataclass(frozen=True)
class Link:
    """One arm that is said to be better than another; the paper's difference of the same two."""

    better: str
    worse: str
    paper: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was found of a link: (seeds, queries) of each primary set, and why it is no test."""

    link: Link
    sets: list[np.ndarray]
    found: statistics.Estimate
    obstacle: str
    remark: str


@dataclass(frozen=True)
class Case:
    """One student in one study, and the smallest difference that matters."""

    selection: Selection
    margin: float

    @property
    def results(self) -> Results:
        return self.selection.results

    # From links to a verdict

    def links(
        self, claim: claims.Order | claims.Worst | claims.InnerOptimum, arms: dict[Any, str]
    ) -> list[Link]:
        """The pairs of arms of which the claim says that the first is better."""
        if isinstance(claim, claims.InnerOptimum):
            labels = [arms[value] for value in sorted(arms)]
            if len(labels) < 3:
                raise NotRun(f"{len(labels)} values, expected three or more")
            inner = best(self.results, labels[1:-1], "an inner value")
            return [Link(inner, labels[0]), Link(inner, labels[-1])]
        names = claim.order if isinstance(claim, claims.Order) else [claim.worst]
        if missing := [name for name in names if name not in arms]:
            raise NotRun(f"no arm of {', '.join(missing)}")
        if isinstance(claim, claims.Order):
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(name, claim.worst) for name in arms if name != claim.worst]
        if not pairs:
            raise NotRun(f"no other arm than {names[0]}")
        return [Link(arms[a], arms[b], paper.value(claim.paper, a, b)) for a, b in pairs]

    def contrast(self, weights: Mapping[str, float]) -> list[np.ndarray]:
        """The weighted sum of arms on each primary test set."""
        sets = list(self.results.contrast(weights, self.results.primary).values())
        if not sets:
            names = ", ".join(self.results.primary)
            raise NotRun(f"no scores on {names} for {', '.join(map(short, weights))}")
        return sets

    def measure(self, link: Link) -> Measured:
        sets = self.contrast({link.better: 1, link.worse: -1})
        bites, remark = self.bite(link.better, link.worse)
        obstacle = self.control or ("" if bites else remark)
        found = statistics.estimate(sets)
        return Measured(link, sets, found, obstacle, "" if obstacle else remark)

    def chain(self, links: Sequence[Link], note: str = "") -> Decision:
        """The verdict on links that all have to hold; see the module's text.

        Shown is the link that decides: of those with the claim's verdict the smallest difference,
        or if it is undecided the one that is least sure. p is that of all links together.
        """
        parts = [self.measure(link) for link in links]
        words = [self._word(part) for part in parts]
        estimates = [part.found for part in parts]
        below = statistics.holm([one.p if one.value < 0 else 1.0 for one in estimates])
        within = statistics.holm([self._p_within(part) for part in parts])

        def least(word: str, adjusted: np.ndarray | None = None) -> int | None:
            """The smallest difference of that verdict, if there is one at the adjusted level."""
            rows = [i for i, own in enumerate(words) if own == word]
            rows = [i for i in rows if adjusted is None or adjusted[i] <= ALPHA]
            return min(rows, key=lambda i: estimates[i].value, default=None)

        def doubt(i: int) -> float:
            """p, and above 1 where the sign is wrong."""
            return estimates[i].p if estimates[i].value > 0 else 2.0 - estimates[i].p

        word: Verdict = "undecided"
        shown, p = max(range(len(parts)), key=doubt), None
        if (found := least("reversed", below)) is not None:
            word, shown, p = "reversed", found, float(below[found])
        elif (found := least("not a test")) is not None:
            word, shown = "not a test", found
        elif set(words) <= {"confirmed", "same sign, smaller"}:
            word = "confirmed" if set(words) == {"confirmed"} else "same sign, smaller"
            shown, p = least(word), max(one.p for one in estimates)
        elif (found := least("no effect", within)) is not None:
            word, shown = "no effect", found
        return self._decision(word, parts, shown, estimates[shown].p if p is None else p, note)

    def _word(self, part: Measured) -> statistics.Verdict:
        word = statistics.verdict(part.found.interval, self.margin, part.link.paper)
        return "not a test" if part.obstacle else word

    def _p_within(self, part: Measured) -> float:
        """Of "the difference matters": small where it lies within the margin on both sides."""
        if abs(part.found.value) >= self.margin:
            return 1.0
        return max(_p_value(part.sets, shift) for shift in (self.margin, -self.margin))

    def on_margin(self, link: Link, kind: str, note: str) -> Decision:
        """The verdict on "not worse" and "no gain"."""
        part = self.measure(link)
        sign = 1 if kind == "not-worse" else -1
        value, *ends = (sign * number for number in part.found.interval)
        word = statistics.verdict_on_bound(Interval(value, *sorted(ends)), -self.margin)
        p = _p_value(part.sets, sign * self.margin)
        return self._decision("not a test" if part.obstacle else word, [part], 0, p, note)

    def _decision(
        self, word: Verdict, parts: Sequence[Measured], shown: int, p: float, note: str
    ) -> Decision:
        part, link, why = parts[shown], parts[shown].link, parts[shown].obstacle
        interval, links = part.found.interval, [one.link for one in parts]
        if word == "not a test" and not why:
            half = 50 * (interval.high - interval.low)
            effect = 100 * link.paper
            why = f"half-width of {half:.2f} points, the paper's effect is {effect:.2f}"
        several = [
            f"{short(one.link.better)} less {short(one.link.worse)} {_points(one.found.interval)}"
            for one in parts
            if len(parts) > 1
        ]
        texts = [why, *several, note, self._beside(link), part.remark]
        return Decision(
            word, *interval, p, part.found.detectable, len(part.sets[0]),
            sum(one.shape[1] for one in part.sets), "; ".join(filter(None, texts)), link.paper,
            tuple(dict.fromkeys(arm for one in links for arm in (one.better, one.worse))),
        )  # fmt: skip

    def _beside(self, link: Link) -> str:
        """The mean over all test sets, where there are more than those that decide."""
        sets = self.results.contrast({link.better: 1, link.worse: -1})
        if set(sets) <= set(self.results.primary):
            return ""
        interval = statistics.mean_interval(list(sets.values()))
        return f"mean of all {len(sets)} test sets {_points(interval)}"

    def slope(self, arms: Mapping[str, str]) -> Decision:
        """The students' means against their teachers' own; the teachers are the units."""
        own = self.selection.own_scores(self.results.primary)
        names = [name for name in arms if name in own]
        if len(names) < 3:
            raise NotRun(f"{len(names)} teachers whose own score is known, expected three or more")
        sets = [self.contrast({arms[name]: 1}) for name in names]
        means = [float(np.mean([values.mean() for values in one])) for one in sets]
        line = statistics.slope([own[name] for name in names], means)
        line = line._replace(value=SLOPE * line.value, error=SLOPE * line.error)
        pairs = itertools.combinations([arms[name] for name in names], 2)
        bites = [self.bite(a, b) for a, b in pairs]
        why = self.control or ("" if any(bite for bite, _ in bites) else bites[0][1])
        word = "not a test" if why else statistics.verdict(line.interval, self.margin)
        points = ", ".join(f"{name} {own[name]:.3f}" for name in names)
        texts = [why, f"{len(names)} teachers, the units of the interval, by their own: {points}"]
        queries = sum(one.shape[1] for one in sets[0])
        return Decision(
            word, *line.interval, line.p, line.detectable, len(sets[0][0]), queries,
            "; ".join(filter(None, texts)), arms=tuple(arms[name] for name in names),
        )  # fmt: skip

    # Whether it is a test at all

    @cached_property
    def control(self) -> str:
        """Empty where a trained arm lies above the student's base model, at a level adjusted for
        their number; else the nearest miss."""
        rows = self.results.arms[self.results.arms["student"] == self.selection.student]
        base = list(rows.index[rows["family"] == "base"])
        trained = rows.index[rows["family"] != "base"] if base else ()
        found = {}
        for label in trained:
            estimate = statistics.estimate(self.contrast({label: 1, base[0]: -1}))
            found[label] = estimate.interval
            # One of many arms is above by chance (Bonferroni)
            if estimate.interval.low > 0 and estimate.p <= ALPHA / len(trained):
                return ""
        if not found:
            return "no positive control: no base model and trained arm to compare"
        label = max(found, key=lambda name: found[name].low)
        return (
            f"no positive control: no trained arm lies surely above the base model; "
            f"{short(label)} comes nearest, {_points(found[label])}"
        )

    def bite(self, a: str, b: str) -> tuple[bool, str]:
        """Whether the scores of two arms could differ by the margin, and what is to be said of it.

        It is not asked of arms that differ in more than their negatives. Where the study has no
        naive and random arm in their setting it is not known, and nothing is held against them.
        """
        arms, share = self.results.arms, self.results.differing
        others = [column for column in arms if column not in OF_NEGATIVES]
        cells = arms[others].astype(object).where(arms[others].notna(), None)
        alike = arms[[row == tuple(cells.loc[a]) for row in cells.itertuples(index=False)]]
        naive, random = (alike.index[alike["family"] == name] for name in ("naive", "random"))
        if b not in alike.index:
            return True, ""
        if naive.empty or random.empty or not {a, b} <= set(share):
            return True, "bite not known: the study has no naive and random arm of this setting"
        own = [label for label in naive if arms.at[label, "teacher"] == arms.at[a, "teacher"]]
        sets = self.contrast({(own or naive)[0]: 1, random[0]: -1})
        hardness = abs(statistics.mean_interval(sets).value)
        differing = max(share.at[a, b], share.at[b, a])
        if differing * hardness >= self.margin:
            return True, ""
        return False, (
            f"no bite: {100 * differing:.1f} % of the negatives differ, and naive and random ones "
            f"by {100 * hardness:.2f} points: {100 * differing * hardness:.2f} together"
        )


def from_reductions(claim: claims.ShareHalved, table: pd.DataFrame) -> dict[str, Decision]:
    """For each audited set: does the method mine so much fewer false negatives?

    *Confirmed*: the interval lies above the claimed share. *Same sign, smaller*: it lies between 0
    and that share. *Reversed*: it lies below 0. A share has no margin, so that nothing is *no
    effect*.

    As in the paper, near-duplicates of a positive are not excluded before mining.

    Args:
        table: columns dataset, near-duplicates, method, reduction, low, high; shares.
    """
    rows = table[(table["method"] == claim.method) & (table["near-duplicates"] == "kept")]
    rows = rows.set_index("dataset")
    if rows.empty:
        raise NotRun(f"no audit of {claim.method}")
    decisions = {}
    for name, row in rows[["reduction", "low", "high"]].astype(float).iterrows():
        interval = Interval(*row)
        word: Verdict = statistics.verdict_on_bound(interval, claim.at_least)
        if word == "reversed":  # short of the share; perhaps fewer all the same
            word = statistics.verdict_on_bound(interval, 0.0)
            word = "same sign, smaller" if word == "confirmed" else word
        decisions[name] = Decision(word, *interval, paper=paper.value(claim.paper))
    return decisions


def from_overlaps(claim: claims.LowJaccard, table: pd.DataFrame) -> dict[str, Decision]:
    """For each training set: the mean overlap of two teachers; the pairs are all there are.

    Nothing is drawn, so that the mean alone decides: *confirmed* below the bound, else *reversed*.

    Args:
        table: columns teacher_a, teacher_b, dataset, jaccard.
    """
    rows = table[table["teacher_a"] != table["teacher_b"]]
    if rows.empty:
        raise NotRun("no two teachers to compare")
    decisions = {}
    for name, values in rows.groupby("dataset", sort=False)["jaccard"]:
        word: Verdict = "confirmed" if values.mean() < claim.below else "reversed"
        note = f"from {values.min():.2f} to {values.max():.2f} over {len(values)} pairs of teachers"
        published = paper.value(claim.paper)
        decisions[name] = Decision(word, float(values.mean()), note=note, paper=published)
    return decisions


def _p_value(sets: Sequence[np.ndarray], shift: float) -> float:
    """Two-sided, of "the mean over the test sets is -shift"."""
    return statistics.estimate([values + shift for values in sets]).p


def _points(interval: Interval) -> str:
    """A difference and its interval in points."""
    value, low, high = (f"{100 * number:+.2f}" for number in interval)
    return f"{value} [{low}, {high}]"
