"""The audit of a profile: its sets with hidden labels, mined by its methods, read by its judges.

Each part is computed when it is asked for, or found in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nvret import data, methods, mining, negatives, teachers
from nvret.analysis import audit, judge_quality, judges, looks, statistics
from nvret.analysis.audit import Hidden
from nvret.analysis.judge_quality import Judged
from nvret.study import paper, tables
from nvret.study.config import Settings
from nvret.study.workspace import Workspace, stored
from nvret.utils import store

if TYPE_CHECKING:
    from IPython.display import HTML

DEPTH = 100  # ranks of the teacher's own ranking that are looked at
RANKS = 30  # that are shown
NAIVE = str(methods.NaiveTopK())  # what all methods are compared with
HALF = methods.TopKPercPos(1.0)  # what symmetry alone gives: no candidate above the positive
WAY = "near-duplicates"  # of a positive: "excluded" from mining, or "kept" as the paper does
AWARE = (methods.NaiveTopK, methods.TopKMarginPos, methods.TopKPercPos)  # that the paper audits


@dataclass(frozen=True)
class Mined:
    """What is mined of one set, with near-duplicates of the positives excluded or kept."""

    labels: Hidden
    tables: dict[str, pa.Table]  # negatives by method
    ranking: pa.Table  # the teacher's own, `DEPTH` candidates a pair
    hidden: pd.DataFrame  # of `audit.against_labelled`

    @cached_property
    def counts(self) -> dict[str, pd.DataFrame]:
        """`nvret.analysis.audit.false_negatives` by method."""
        return {m: audit.false_negatives(table, self.labels) for m, table in self.tables.items()}

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """`nvret.analysis.audit.frontier`."""
        return audit.frontier(self.tables, self.labels, self.ranking, NAIVE)


class AuditedSet:
    """One set of the audit; the arguments are those of `Audit`, and the set's name."""

    def __init__(self, settings: Settings, name: str, *, progress: bool = True) -> None:
        self.settings, self.chosen = settings, settings.audit
        self.name, self.progress = name, progress
        wanted = [method for one in self.chosen.methods for method in one.build()]
        needed = [method for method in (methods.NaiveTopK(), HALF) if method not in wanted]
        self.methods = [*needed, *wanted]

    @cached_property
    def hidden(self) -> Hidden:
        """The set without some of its labels."""
        whole = data.load(self.name, progress=self.progress)
        return audit.labels(whole, self.chosen.queries, self.chosen.passages)

    @cached_property
    def mined(self) -> dict[str, Mined]:
        """By what becomes of near-duplicates, the profile's own way first."""
        threshold = self.settings.mining.near_duplicates
        own = {} if threshold is None else {"excluded": self._mined(threshold)}
        return own | {"kept": self._mined(None)}

    def _mined(self, near_duplicates: float | None) -> Mined:
        hidden, depth = self.hidden, self.chosen.num_negatives
        dataset = hidden.dataset
        teacher = Workspace(self.settings).teacher(self.chosen.teacher)
        scorer = teachers.prepare(teacher, dataset, progress=self.progress)
        options = self.settings.mining.model_dump() | {"near_duplicates": near_duplicates}

        def build(folder: Path) -> None:
            known = mining.exclusions(dataset, near_duplicates)
            shared = options | {"exclude": known, "progress": False}
            mined = mining.sweep(dataset, scorer, self.methods, depth, **shared)
            mined.append(mining.mine(dataset, scorer, methods.NaiveTopK(), DEPTH, **shared))
            for place, table in enumerate(mined):
                negatives.save(table, folder / f"{place}.parquet")
            audit.against_labelled(hidden, scorer, known).to_parquet(folder / "hidden.parquet")

        folder = stored(
            "audit",
            build,
            dataset=dataset.fingerprint,
            hidden=store.fingerprint(hidden.pairs),
            teacher=scorer.fingerprint,
            methods=[method.record for method in self.methods],
            mining=options | {"num_negatives": depth, "depth": DEPTH},
        )
        places = range(len(self.methods) + 1)
        *mined, ranking = [negatives.load(folder / f"{place}.parquet") for place in places]
        tables = dict(zip(map(str, self.methods), mined, strict=True))
        return Mined(hidden, tables, ranking, pd.read_parquet(folder / "hidden.parquet"))

    @property
    def own(self) -> Mined:
        """What the profile's own mining gives."""
        return next(iter(self.mined.values()))

    @cached_property
    def judged(self) -> list[Judged]:
        """The teacher's own scores, which cost nothing more, and each judge, on the same pairs.

        The pairs are naive negatives: half of them known positives, if there are as many.
        """
        hidden = self.hidden
        pairs = judge_quality.sample(
            self.own.tables[NAIVE], self.chosen.judged_pairs, hidden=hidden
        )
        teacher = self.settings.teacher_named(self.chosen.teacher, "audit.teacher")
        limit = teacher.passage_max_length
        verdicts = [judge_quality.by_ceiling(pairs, hidden)]
        for judge in self.chosen.judges:

            def build(target: Path, judge: str = judge) -> None:
                model = judges.load(judge, max_length=limit, device=self.settings.device)
                judge_quality.judge(
                    model, hidden.dataset, pairs, hidden, progress=self.progress
                ).save(target)

            folder = stored(
                "judged",
                build,
                pairs=store.fingerprint(pairs, hidden.dataset.fingerprint, hidden.pairs),
                judge=judges.fingerprint(judge, limit),
            )
            verdicts.append(Judged.load(folder))
        return verdicts


class Audit:
    """What ``09_false_negatives`` shows; the tables have a column ``dataset``.

    Args:
        settings: of the profile; its section ``audit`` says what is audited.
        progress: show bars.
    """

    def __init__(self, settings: Settings, *, progress: bool = True) -> None:
        self.datasets = settings.audit.datasets
        self.sets = {name: AuditedSet(settings, name, progress=progress) for name in self.datasets}

    def _both(self, rows: Callable[[Mined], Any]) -> pd.DataFrame:
        """The rows of every set and way in one table, with a column `WAY`."""
        parts = {
            (name, way): pd.DataFrame(rows(mined))
            for name, one in self.sets.items()
            for way, mined in one.mined.items()
        }
        return pd.concat(parts, names=["dataset", WAY]).droplevel(-1).reset_index()

    @property
    def way(self) -> str:
        """The profile's own: "excluded" or "kept"."""
        return next(iter(self.sets[self.datasets[0]].mined))

    def sizes(self) -> pd.DataFrame:
        """How the labels of each set were hidden, and how many of them; see `against_labelled`.

        ``excluded``: the share of hidden positives that the profile's exclusion keeps from mining.
        """
        rows = []
        for name, one in self.sets.items():
            sizes = tables.sizes(one.hidden.dataset)
            out = one.own.hidden.groupby(["query_id", "corpus_id"])["excluded"].any()
            rows.append({
                "dataset": name,
                "labels": one.hidden.source,
                "queries": sizes["questions"],
                "passages": sizes["passages"],
                "words per passage": sizes["words a passage"],
                "hidden per query": one.hidden.pairs.num_rows / sizes["questions"],
                "excluded": out.mean(),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def frontier(self) -> pd.DataFrame:
        """`nvret.analysis.audit.frontier` of every set, near-duplicates excluded and kept."""
        return self._both(lambda mined: mined.frontier)

    def reductions(self) -> pd.DataFrame:
        """How much fewer false negatives than naive top-k, as a share of naive's rate."""

        def rows(mined: Mined) -> list[dict[str, Any]]:
            others = {m: count for m, count in mined.counts.items() if m != NAIVE}
            lower = {m: statistics.reduction(c, mined.counts[NAIVE]) for m, c in others.items()}
            return [{"method": m, **interval._asdict()} for m, interval in lower.items()]

        return self._both(rows).rename(columns={"value": "reduction"})

    def symmetry(self) -> pd.DataFrame:
        """How often a hidden positive scores as high as the labelled one: half, if exchangeable.

        Returns:
            a row a set and way: ``pairs`` of a hidden and a labelled positive of one query that
            can be mined, and the share ``above`` with its interval over queries.
        """

        def rows(mined: Mined) -> list[dict[str, Any]]:
            free = mined.hidden[~mined.hidden["excluded"]]
            higher = (free["score"] >= free["positive_score"]).astype(int)
            above = statistics.rate(free[["query_id"]].assign(mined=1, false=higher))
            return [{"pairs": len(free), **above._asdict()}]

        return self._both(rows).rename(columns={"value": "above"})

    def excess(self) -> pd.DataFrame:
        """What a method removes beyond what knows nothing of false negatives.

        Returns:
            for each method two rows: ``less than`` the ceiling at the positive's own score, which
            symmetry alone would let halve the rate, and the shift (naive mining is the shift by 0)
            at the method's own hardness, interpolated. ``reduction`` is 1 - rate ÷ ``their rate``;
            NaN where no shift is as hard.
        """

        def rows(mined: Mined) -> list[dict[str, Any]]:
            hardness = mined.frontier.set_index("method")["hardness"]
            counts = mined.counts
            line = [m for m in counts if m == NAIVE or "shifted" in m]
            shifts = [counts[m] for m in line], list(hardness[line])
            found = []
            for method in (m for m in counts if m not in line):
                references = {
                    "the ceiling at 100 %": counts[str(HALF)],
                    "a shift as hard": audit.between(*shifts, hardness[method]),
                }
                if method == str(HALF):
                    del references["the ceiling at 100 %"]
                for name, reference in references.items():
                    row = {"method": method, "hardness": hardness[method], "less than": name}
                    row |= dict.fromkeys(["their rate", *statistics.Interval._fields], np.nan)
                    if reference is not None:
                        row |= statistics.reduction(counts[method], reference)._asdict()
                        row["their rate"] = statistics.rate(reference).value
                    found.append(row)
            return found

        return self._both(rows).rename(columns={"value": "reduction"})

    def beside_paper(self) -> pd.DataFrame:
        """The paper's audit above this one: columns of ``results/paper/false_negatives.csv``.

        ``share`` of naive negatives that are positives; ``reduction`` by a positive-aware method.
        """
        theirs = paper.table("false_negatives").assign(**{WAY: "kept"})  # it excludes none
        audited = self.sets[self.datasets[0]].methods
        wanted = [str(method) for method in audited if isinstance(method, AWARE)]
        ours = self.frontier().rename(columns={"rate": "share"})
        ours = ours[ours["method"].isin(wanted)]
        ours = ours.merge(self.reductions(), on=["dataset", WAY, "method"], how="left")
        judge = {name: f"hidden labels, {one.hidden.source}" for name, one in self.sets.items()}
        ours = ours.assign(judge=ours["dataset"].map(judge), source="here")
        return pd.concat([theirs, ours[theirs.columns]], ignore_index=True)

    def by_rank(self) -> pd.DataFrame:
        """The share of known positives at each of the first ranks of the teacher's ranking."""
        table = self._both(lambda mined: audit.by_rank(mined.ranking, mined.labels))
        return table[table["rank"] <= RANKS].reset_index(drop=True)

    def quality(self) -> pd.DataFrame:
        """What each judge catches on each set, and how many tokens it reads for it."""
        rows = []
        for name, one in self.sets.items():
            share = float(audit.known(one.own.tables[NAIVE], one.hidden).mean())
            for judged in one.judged:
                row = {"dataset": name, WAY: self.way, **judge_quality.quality(judged, share)}
                rows.append(row | {"tokens per pair": judged.tokens})
        return pd.DataFrame(rows)

    def curves(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Set -> judge -> what it catches at each of its thresholds."""
        return {
            name: {judged.judge: judge_quality.curve(judged) for judged in one.judged}
            for name, one in self.sets.items()
        }

    def seconds(self) -> pd.DataFrame:
        """Seconds for a thousand pairs when they were judged: this machine's, at that moment."""
        times = {name: {j.judge: j.seconds for j in one.judged} for name, one in self.sets.items()}
        return pd.DataFrame(times).rename_axis("judge")

    def examples(self, name: str, number: int) -> list[HTML]:
        """Naive negatives that are hidden positives, those of the best rank first."""
        hidden, table = self.sets[name].hidden, self.sets[name].own.tables[NAIVE]
        rows = table.to_pandas()[audit.known(table, hidden)]
        rows = rows.sort_values(["rank", "score"], ascending=[True, False], kind="stable")
        dataset = hidden.dataset
        text = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))
        asked = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
        return [
            looks.example(
                asked[row.query_id],
                {
                    f"kept positive, {row.positive_score:.2f}": text[row.positive_id],
                    f"negative of rank {row.rank}, {row.score:.2f}": text[row.negative_id],
                },
            )
            for row in rows.head(number).itertuples()
        ]
