"""A ceiling for a target: how tight must a rule be, for this teacher and these data, that no more
than a given share of its negatives is false?

The paper's 95 % is one teacher's on its data. Each parameter of a rule's family is tried on one
ranking: which passages it would take is known, and the question is how many of them answer their
query after all. Four ways to know, the surest first:

| source | what it needs | what it says |
|---|---|---|
| hidden positives | queries with several positives, all but one hidden | counted: a lower bound |
| labels | some 200 pairs that a person has judged | by a model of two terms |
| a judge | a model that reads these pairs | likewise, as good as the judge |
| scores alone | nothing | a rough estimate, by symmetry |

The labelled pairs are drawn where it is least sure what they are, since nearly all of what is false
lies at the top. A logistic regression on the share of the positive's score and on the rank then
speaks for all candidates. Without labels: if it is chance which positive was labelled, as many
others lie below it as above at the same distance, so that what stands above tells roughly what is
false below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import methods
from nvret.analysis import audit, looks
from nvret.analysis.audit import Hidden
from nvret.analysis.judges import Judge
from nvret.analysis.ladder import BINS, DEPTH, FAMILIES, Ladder, is_one_of, method_of, names_of
from nvret.analysis.statistics import Interval, rate
from nvret.sampling import pair_keys
from nvret.utils.errors import NvretError

Source = Literal["hidden positives", "labels", "judge", "scores alone"]
ANCHORS = 6  # parameters whose negatives are labelled first
FIRST = 40  # per cent of the labels that a judge gives before it is known where they decide
BAND = 3  # times above or below the target that a rate may be by the labels so far, to be looked at
PRIOR = 0.02, 0.5  # least and most chance by the scores alone that decides what is labelled
SEVERAL = 50  # queries with several positives, from which these are hidden
LEAST = 20  # labels of either kind together, before anything is said
FEW = 4  # relevant labels below which they say little
RESAMPLES = 400


@dataclass(frozen=True)
class Calibration:
    """What a target asks of a family.

    Attributes:
        method: the loosest that meets the target; None where none does.
        rate: of its false negatives, with a 95 % interval.
        low, high: 95 % of the resamples choose a parameter between them.
        curve: a row for each parameter: parameter, rate, low, high, hardness (mean share of the
            positive's score), short (share of the pairs that find fewer negatives than wanted
            within ``DEPTH`` ranks; mining looks deeper).
        labelled: pairs that were labelled, and of them relevant ones.
    """

    target: float
    source: Source
    method: methods.Method | None
    rate: Interval
    low: float
    high: float
    curve: pd.DataFrame
    labelled: tuple[int, int]


def sample(
    steps: Ladder,
    target: float,
    number: int = 200,
    seed: int = 0,
    *,
    labels: pa.Table | None = None,
) -> pd.DataFrame:
    """Pairs to label, of different queries where possible.

    They are what some parameters would take, and more of those of which it is least sure what
    they are: a weight of sqrt(p (1 - p)), p being the chance that they are relevant. The first
    pairs know p by the scores alone, and go from the loosest parameter to one that is tighter than
    the target needs; later ones know it by the labels so far, and stay near the target. What is
    drawn depends on scores, ranks and these labels, which `by_labels` knows too, so that it needs
    no weights.

    Args:
        labels: of pairs before, which are not drawn again; as of `by_labels`.
    Returns:
        columns candidate (its place in the ladder), query_id, corpus_id, query, passage, positive
        (texts), share; in a random order, so that a labeller cannot guess.
    """
    names = audit.pairs_of(steps.dataset, steps.query, steps.passage)
    # Not in the order of audit.hide, which keeps the positive of the lowest hash
    keys = pair_keys(names["corpus_id"], names["query_id"], seed)
    if labels is None:
        chance = _chance(steps, np.ones(steps.pairs))
        needless = steps.rates(chance) < target / 2
        last = int(needless.argmax()) if needless.any() else len(needless) - 1
        anchors = np.unique(np.linspace(0, last, ANCHORS).round().astype(int))
    else:
        model = _Model.of(steps, labels)
        chance = model.chance(np.ones(len(model.at)))
        away = np.abs(np.log(np.maximum(steps.rates(chance), 1e-6) / target))
        anchors = np.flatnonzero(away <= max(np.log(BAND), away.min()))
        if model.relevant.sum() < FEW:  # of which no model can be made: where most of them are
            anchors = np.arange(3)
    use = steps.taken[anchors].sum(0).A1 / len(anchors)
    chance = chance.clip(*PRIOR)
    weight = use * np.sqrt(chance * (1 - chance))
    if labels is not None:
        weight[model.at] = 0
    uniform = ((keys >> np.uint64(11)) + 0.5) * 2.0**-53
    order = np.argsort(np.log(uniform) / np.maximum(weight, 1e-9), kind="stable")[::-1]
    order = order[: (weight > 0).sum()]
    # A query's second candidate comes after all first ones (Efraimidis and Spirakis 2006 within)
    turn = pd.Series(steps.query[order]).groupby(steps.query[order]).cumcount().to_numpy()
    chosen = order[np.argsort(turn, kind="stable")][:number]
    chosen = chosen[np.argsort(keys[chosen], kind="stable")]
    queries, passages = steps.dataset.query_texts, steps.dataset.passages
    return names.take(chosen).to_pandas().assign(
        candidate=chosen,
        query=[queries[row] for row in steps.query[chosen]],
        passage=[passages[row] for row in steps.passage[chosen]],
        positive=[passages[row] for row in steps.positive[chosen]],
        share=steps.share[chosen],
    )  # fmt: skip


def by_hidden(steps: Ladder, hidden: Hidden, target: float) -> Calibration:
    """By positives that mining does not see, counted."""
    known = is_one_of(steps, hidden.pairs)
    rows = pd.DataFrame({"query_id": steps.query, "mined": 1, "false": known})
    taken = [rows.iloc[one.indices] for one in steps.taken]
    intervals = [rate(one) if len(one) else Interval(0, 0, 0) for one in taken]
    owner = np.unique(steps.query, return_inverse=True)[1]
    rates, labelled = partial(steps.rates, known), (len(known), int(known.sum()))
    return _calibration(
        steps, target, "hidden positives", rates, owner, RESAMPLES, labelled, intervals
    )


def by_labels(
    steps: Ladder,
    labels: pa.Table,
    target: float,
    source: Source = "labels",
    *,
    resamples: int = RESAMPLES,
) -> Calibration:
    """By a model of labelled pairs.

    Args:
        labels: query_id, corpus_id, score (0: not relevant); pairs that are no candidate of the
            ladder are left aside.
        resamples: of the queries, for the intervals.
    Raises:
        NvretError: fewer than 20 of them are candidates.
    """
    model = _Model.of(steps, labels)
    owner = np.unique(steps.query[model.at], return_inverse=True)[1]
    labelled = len(model.at), int(model.relevant.sum())
    return _calibration(
        steps, target, source, lambda weights: steps.rates(model.chance(weights)), owner,
        resamples, labelled,
    )  # fmt: skip


def by_judge(
    steps: Ladder, judge: Judge, target: float, number: int = 200, *, progress: bool = True
) -> Calibration:
    """By what a judge says of as many pairs."""
    labels = None
    for some in (number * FIRST // 100, number - number * FIRST // 100):
        pairs = sample(steps, target, some, labels=labels)
        texts = (pairs[name].tolist() for name in ("query", "passage", "positive"))
        values, _ = judge.scores(*texts, progress=progress)
        more = pa.table({
            "query_id": pairs["query_id"].tolist(), "corpus_id": pairs["corpus_id"].tolist(),
            "score": (values >= judge.threshold).astype(np.int32),
        })  # fmt: skip
        labels = more if labels is None else pa.concat_tables([labels, more])
    return by_labels(steps, labels, target, "judge")


def by_scores(steps: Ladder, target: float, *, resamples: int = RESAMPLES // 2) -> Calibration:
    """Without a label: a rough estimate.

    Of passages that answer the query as well as the labelled one does, as many score above it as
    below, at the same distances. So a candidate below is false with a probability of at most the
    candidates above at its distance, divided by those below: over all pairs together, and not for
    those of one score, so that the estimate is rough.
    """
    return _calibration(
        steps, target, "scores alone", lambda weights: steps.rates(_chance(steps, weights)),
        np.arange(steps.pairs), resamples, (0, 0),
    )  # fmt: skip


def _resamples(owner: np.ndarray, number: int) -> Iterator[np.ndarray]:
    """Weights where owners, such as queries, are drawn with replacement; ``owner``: from 0."""
    rng, size = np.random.default_rng(0), owner.max() + 1
    for _ in range(number):
        yield np.bincount(rng.integers(0, size, size), minlength=size)[owner]


def _chance(steps: Ladder, weights: np.ndarray) -> np.ndarray:
    """(U,) chance that a candidate is false, by the scores alone; ``weights``: (P,) of the pairs.

    It never rises with the distance.
    """
    from sklearn.isotonic import IsotonicRegression

    above, below = weights @ steps.above, weights @ steps.below
    ratio = np.minimum(1.0, above / np.maximum(below, 1))
    fit = IsotonicRegression(increasing=False, y_min=0, y_max=1)
    chance = fit.fit_transform(np.arange(len(ratio)), ratio, sample_weight=below + 1)
    bins = np.searchsorted(BINS, np.abs(steps.gap), "right") - 1
    return np.where(steps.gap <= 0, 1.0, chance[bins.clip(max=len(chance) - 1)])


@dataclass(frozen=True)
class _Model:
    """A logistic regression of relevance on the share of the positive's score and on the rank.

    Attributes:
        features: (3, U) a constant, share and logarithm of the rank, of unit spread.
        at: (L,) the labelled candidates.
        relevant: (L,) bool.
    """

    features: np.ndarray
    at: np.ndarray
    relevant: np.ndarray

    @classmethod
    def of(cls, steps: Ladder, labels: pa.Table) -> _Model:
        names = names_of(steps)
        kept = np.flatnonzero(~names.duplicated())  # the first of those that several pairs have
        place = names[kept].get_indexer(audit.index_of(labels))
        at, relevant = kept[place[place >= 0]], labels["score"].to_numpy()[place >= 0] > 0
        if len(at) < LEAST:
            raise NvretError(
                f"{len(at)} of {labels.num_rows} labelled pairs are candidates of this teacher, "
                f"expected at least {LEAST}; `--sample` writes a page of such pairs"
            )
        features = np.stack([np.ones(len(steps.pair)), steps.share - 1, np.log(steps.rank)])
        scale = np.maximum(features[:, at].std(1), 1e-9)
        scale[0] = 1
        return cls(features / scale[:, None], at, relevant)

    def chance(self, weights: np.ndarray) -> np.ndarray:
        """(U,) probabilities, by Newton's method; ``weights``: (L,) of the labels.

        A weak prior (a normal one, of standard deviation 3 on features of unit spread) keeps them
        off 0 and 1 where the features tell the two kinds apart.
        """
        x, prior = self.features[:, self.at], np.diag([1e-6, 1 / 9, 1 / 9])
        beta = np.zeros(3)
        for _ in range(50):
            p = 1 / (1 + np.exp(-(beta @ x).clip(-30, 30)))
            gradient = x @ (weights * (self.relevant - p)) - prior @ beta
            curvature = (x * (weights * p * (1 - p))) @ x.T + prior + 1e-9 * np.eye(3)
            step = np.linalg.solve(curvature, gradient)
            beta = beta + step * min(1.0, 4 / max(np.abs(step).max(), 1e-12))
            if np.abs(step).max() < 1e-6:
                break
        return 1 / (1 + np.exp(-(beta @ self.features).clip(-30, 30)))


def _calibration(
    steps: Ladder,
    target: float,
    source: Source,
    rates: Callable[[np.ndarray], np.ndarray],
    owner: np.ndarray,
    resamples: int,
    labelled: tuple[int, int],
    intervals: Sequence[Interval] | None = None,
) -> Calibration:
    """The answer of a source.

    Args:
        rates: (G,) of false negatives, given weights.
        owner: what each weight is of, numbered from 0; drawn with replacement.
        intervals: of the rates; None: from the resamples.
    """
    draws = np.array([rates(weights) for weights in _resamples(owner, resamples)])
    if intervals is None:
        ends = np.quantile(draws, [0.025, 0.975], axis=0)
        columns = rates(np.ones(len(owner))), *ends
        intervals = [Interval(*map(float, row)) for row in zip(*columns, strict=True)]
    curve = pd.DataFrame(intervals, columns=["rate", "low", "high"])
    curve.insert(0, "parameter", steps.parameters)
    curve["hardness"] = steps.rates(steps.share)
    filled = [np.bincount(steps.pair[row.indices], minlength=steps.pairs) for row in steps.taken]
    curve["short"] = [float((some < steps.wanted).mean()) for some in filled]
    meets = (curve["rate"].to_numpy() <= target) & (steps.taken.getnnz(1) > 0)
    method, found, ends = None, Interval(np.nan, np.nan, np.nan), (np.nan, np.nan)
    if meets.any():
        place = int(meets.argmax())
        method, found = method_of(steps.family, steps.parameters[place]), intervals[place]
        reached = draws <= target
        chosen = np.where(reached.any(1), reached.argmax(1), len(steps.parameters) - 1)
        ends = np.sort(steps.parameters[np.quantile(chosen, [0.025, 0.975], method="nearest")])
    return Calibration(target, source, method, found, *map(float, ends), curve, labelled)


def page(pairs: pd.DataFrame) -> str:
    """A page on which a person labels pairs, one by one, and saves them as a .tsv of judgements.

    It holds the texts and needs no network; the scores are not shown.
    """
    rows = pairs[["query_id", "corpus_id", "query", "positive", "passage"]].to_dict("records")
    return looks.page("label.html", pairs=rows)


def describe(found: Calibration, family: str) -> str:
    """The answer in a few lines, with what it rests on."""
    known, relevant = found.labelled
    reasons = {
        "hidden positives": f"counted by {relevant} hidden positives among {known} candidates, a "
        "lower bound: others may be unlabelled",
        "labels": f"by a model of {known} labelled pairs, {relevant} of them relevant",
        "judge": f"by a model of {known} pairs that a judge has read, {relevant} of them relevant "
        "to it",
        "scores alone": "a rough estimate, by the scores alone: labels would say more",
    }
    curve = found.curve
    loosest, tightest = curve.iloc[0], curve.iloc[-1]
    if found.method is None:
        lines = [
            f"no {FAMILIES[family]} from {loosest.parameter:g} to {tightest.parameter:g} meets "
            f"{found.target:.1%}: at {tightest.parameter:g} {tightest.rate:.1%} are false"
        ]
    else:
        ((name, value),) = vars(found.method).items()
        row = curve[curve["parameter"] == value].iloc[0]
        lines = [
            f"--method {family} --{name} {value:g}   (95 % of the resamples: {found.low:g} to "
            f"{found.high:g})",
            f"  false negatives {row.rate:.1%} [{row.low:.1%}, {row.high:.1%}], hardness "
            f"{row.hardness:.2f}; {row.short:.1%} of the pairs find fewer within {DEPTH} ranks",
        ]
    if family == "perc-pos":
        row = curve[np.isclose(curve["parameter"], 0.95)].iloc[0]
        interval = f"[{row.low:.1%}, {row.high:.1%}]"
        lines.append(f"  at 95 %: {row.rate:.1%} {interval}, hardness {row.hardness:.2f}")
    lines.append(f"  {reasons[found.source]}")
    if found.source in ("labels", "judge") and relevant < FEW:
        lines.append("  so few relevant ones say little: label more (--labels with --sample)")
    return "\n".join(lines)


def record(found: Calibration) -> dict[str, Any]:
    """As JSON."""
    curve = found.curve.astype(float).replace([np.inf, -np.inf], np.nan)
    return {
        "target": found.target,
        "source": found.source,
        "method": None if found.method is None else found.method.record,
        "rate": None if found.method is None else found.rate._asdict(),
        "between": None if found.method is None else [found.low, found.high],
        "labelled": dict(zip(("pairs", "relevant"), found.labelled, strict=True)),
        "curve": json.loads(curve.to_json(orient="records")),
    }
