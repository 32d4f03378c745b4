"""What ``15_calibration`` shows: how near a ceiling that was calibrated comes to its target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from nvret import data, mining, teachers
from nvret.analysis import audit, calibrate, ladder, looks
from nvret.analysis.audit import Hidden
from nvret.study.config import Settings
from nvret.study.workspace import Workspace, stored
from nvret.utils import store

FAMILY, FIXED = "perc-pos", 0.95  # the rule, and the percentage of the paper
LABELS, FIRST, DRAWS = 200, 80, 20
QUERIES, PASSAGES = 1500, 12_000
NEAR = 0.03  # of the target
WAYS = {"labels": f"{LABELS} labels", "scores": "scores alone", "fixed": f"fixed {FIXED:.0%}"}


class Known(NamedTuple):
    """A teacher's ladder on a set whose other positives are known."""

    steps: ladder.Ladder
    hidden: Hidden
    key: str  # the teacher's fingerprint
    false: np.ndarray  # (U,) bool: which candidates of the ladder are hidden positives


def known(settings: Settings, name: str, teacher: str, *, progress: bool = True) -> Known:
    """A set of the audit, cut to a size at which many teachers can read it."""
    chosen = settings.audit
    sizes = min(QUERIES, chosen.queries or QUERIES), min(PASSAGES, chosen.passages or PASSAGES)
    hidden = audit.labels(data.load(name, progress=progress), *sizes)
    dataset, reader = hidden.dataset, Workspace(settings).teacher(teacher)
    scorer = teachers.prepare(reader, dataset, progress=progress)
    exclude = mining.exclusions(dataset, settings.mining.near_duplicates)
    number = chosen.num_negatives
    steps = ladder.build(dataset, scorer, FAMILY, number, exclude, progress=progress)
    return Known(steps, hidden, scorer.fingerprint, ladder.is_one_of(steps, hidden.pairs))


def measured(
    settings: Settings, names: Sequence[str], targets: Sequence[float], *, progress: bool = True
) -> pd.DataFrame:
    """How false the negatives are that each way of choosing the percentage leads to.

    Args:
        names: teachers of the profile.
        targets: shares of false negatives that are asked for.
    Returns:
        columns dataset, teacher, target, way, draw, percentage, rate (the true share of hidden
        positives under it), naive (the share without a ceiling), labelled, relevant.
    """
    parts = []
    for name in settings.audit.datasets:
        for teacher in names:
            one = known(settings, name, teacher, progress=progress)

            def build(folder: Path, one: Known = one) -> None:
                rows = [row for target in targets for row in _rows(one, target)]
                pd.DataFrame(rows).to_parquet(folder / "rows.parquet")

            folder = stored(
                "calibrated", build, dataset=one.steps.dataset.fingerprint, teacher=one.key,
                hidden=store.fingerprint(one.hidden.pairs), targets=list(targets),
                sizes=[FAMILY, FIXED, LABELS, DRAWS, one.steps.wanted],
                near_duplicates=settings.mining.near_duplicates,
            )  # fmt: skip
            part = pd.read_parquet(folder / "rows.parquet")
            parts.append(part.assign(dataset=name, teacher=teacher))
    return pd.concat(parts, ignore_index=True)


def _rows(one: Known, target: float) -> Iterator[dict[str, object]]:
    grid, rates = one.steps.parameters, one.steps.rates(one.false)
    shared = {"target": target, "naive": rates[0]}

    def row(way: str, draw: int, parameter: float, **more: int) -> dict[str, object]:
        rate = rates[int(np.abs(grid - parameter).argmin())]
        return shared | {"way": way, "draw": draw, "percentage": parameter, "rate": rate} | more

    for draw in range(DRAWS):
        labels = None
        for number in (FIRST, LABELS - FIRST):
            pairs = calibrate.sample(one.steps, target, number, draw, labels=labels)
            ids = {name: pairs[name].tolist() for name in ("query_id", "corpus_id")}
            score = one.false[pairs["candidate"].to_numpy()].astype(np.int32)
            more = pa.table(ids | {"score": score})
            labels = more if labels is None else pa.concat_tables([labels, more])
        found = calibrate.by_labels(one.steps, labels, target, resamples=1)
        chosen = grid[-1] if found.method is None else found.method.perc
        counts = dict(zip(("labelled", "relevant"), found.labelled, strict=True))
        yield row("labels", draw, chosen, **counts)
    rough = calibrate.by_scores(one.steps, target, resamples=1)
    yield row("scores", 0, grid[-1] if rough.method is None else rough.method.perc)
    yield row("fixed", 0, FIXED)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each set, teacher and target: what each way gives, and how often it is near."""
    keys = ["dataset", "teacher", "target"]
    rows = rows.assign(near=_away(rows) <= NEAR)
    groups = rows[rows["way"] == "labels"].groupby(keys, sort=False)
    table = pd.DataFrame({
        "without a ceiling": groups["naive"].first(),
        WAYS["labels"]: groups["rate"].mean(),
        "lowest": groups["rate"].min(),
        "highest": groups["rate"].max(),
        "within 3 points": groups["near"].mean(),
        "percentage": groups["percentage"].median(),
    })  # fmt: skip
    for way in ("scores", "fixed"):
        table[WAYS[way]] = rows[rows["way"] == way].groupby(keys, sort=False)["rate"].first()
    return table.reset_index()


def _away(rows: pd.DataFrame) -> pd.Series:
    """How far each rate is from the target, or from naive mining's where that is lower: then no
    ceiling can come nearer."""
    return (rows["rate"] - np.minimum(rows["target"], rows["naive"])).abs()


def figure(rows: pd.DataFrame) -> Figure:
    """A panel for each set: the true rate under what each way chose, by teacher and target."""
    sets = list(dict.fromkeys(rows["dataset"]))
    targets = sorted(set(rows["target"]))
    size = {"figsize": (4.2 * len(sets), 3.8), "layout": "constrained"}
    made, axes = plt.subplots(1, len(sets), sharey=True, squeeze=False, **size)
    names = list(dict.fromkeys(rows["teacher"]))
    marks = {"labels": ("o", looks.BLUE), "scores": ("^", looks.ORANGE),
             "fixed": ("x", looks.VERMILION)}  # fmt: skip
    for axis, name in zip(axes[0], sets, strict=True):
        for target, line in zip(targets, ("--", ":"), strict=False):
            axis.axhline(100 * target, color="#777777", linestyle=line, linewidth=1,
                         label=f"target {target:.0%}")  # fmt: skip
        for (teacher, target, way), part in rows[rows["dataset"] == name].groupby(
            ["teacher", "target", "way"], sort=False
        ):
            if way == "fixed" and target != targets[0]:
                continue
            away = 0.32 * (targets.index(target) - (len(targets) - 1) / 2)
            place = names.index(teacher) + (0 if way == "fixed" else away)
            mark, colour = marks[way]
            many = {"alpha": 0.45} if way == "labels" else {}
            axis.plot(np.full(len(part), place), 100 * part["rate"], mark, color=colour,
                      label=WAYS[way], markersize=5, **many)  # fmt: skip
        axis.set(title=name, xticks=range(len(names)), xlim=(-0.6, len(names) - 0.4))
        axis.set_xticklabels(names, rotation=25, ha="right")
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set(ylabel="false among the negatives (%)", ylim=(0, None))
    handles, texts = axes[0][0].get_legend_handles_labels()
    shown = dict(zip(texts, handles, strict=True))
    made.legend(shown.values(), shown, loc="outside upper center", ncols=len(shown), frameon=False)
    return made


def answer(rows: pd.DataFrame) -> str:
    """What was found, in sentences that the rows decide."""
    fixed = rows[(rows["way"] == "fixed") & (rows["target"] == rows["target"].min())]["rate"]
    away = _away(rows)
    mean = 100 * away.groupby(rows["way"]).mean()
    near = (away[rows["way"] == "labels"] <= NEAR).mean()
    return (
        f"**Answer.** Under a fixed {FIXED:.0%}, {fixed.min():.1%} to {fixed.max():.1%} of the "
        f"negatives are known to be false, depending on teacher and set. With {LABELS} labels the "
        f"true rate is within three points of what can be reached in {near:.0%} of the draws, and "
        f"{mean['labels']:.1f} points from it on average; by the scores alone it is "
        f"{mean['scores']:.1f} points away, by the fixed percentage {mean['fixed']:.1f}."
    )
