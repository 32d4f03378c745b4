"""The audit of a profile: its sets with hidden labels, mined by its methods, read by its judges.

Each part is computed when it is asked for, or found in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from nvret import assets, data, methods, mining, negatives, teachers
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
AWARE = (methods.NaiveTopK, methods.TopKMarginPos, methods.TopKPercPos)  # that the paper audits


class AuditedSet:
    """One set of the audit; the arguments are those of `Audit`, and the set's name."""

    def __init__(self, settings: Settings, name: str, *, progress: bool = True) -> None:
        self.settings, self.chosen = settings, settings.audit
        self.name, self.progress = name, progress
        wanted, naive = self.chosen.build_methods(), methods.NaiveTopK()
        self.methods = wanted if naive in wanted else [naive, *wanted]

    @cached_property
    def hidden(self) -> Hidden:
        """The set without some of its labels."""
        whole = data.load(self.name, progress=self.progress)
        return audit.labels(whole, self.chosen.queries, self.chosen.passages)

    @cached_property
    def _mined(self) -> tuple[dict[str, pa.Table], pa.Table]:
        """``tables`` and ``ranking``."""
        dataset, depth = self.hidden.dataset, self.chosen.num_negatives
        teacher = Workspace(self.settings).teacher(self.chosen.teacher)
        scorer = teachers.prepare(teacher, dataset, progress=self.progress)
        options = self.settings.mining.model_dump()

        def build(folder: Path) -> None:
            known = mining.exclusions(dataset, self.settings.mining.near_duplicates)
            shared = options | {"exclude": known, "progress": False}
            mined = mining.sweep(dataset, scorer, self.methods, depth, **shared)
            mined.append(mining.mine(dataset, scorer, methods.NaiveTopK(), DEPTH, **shared))
            for place, table in enumerate(mined):
                negatives.save(table, folder / f"{place}.parquet")

        folder = stored(
            "audit",
            build,
            dataset=dataset.fingerprint,
            teacher=scorer.fingerprint,
            methods=[method.record for method in self.methods],
            mining=options | {"num_negatives": depth, "depth": DEPTH},
        )
        places = range(len(self.methods) + 1)
        *mined, ranking = [negatives.load(folder / f"{place}.parquet") for place in places]
        return dict(zip(map(str, self.methods), mined, strict=True)), ranking

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Negatives by method."""
        return self._mined[0]

    @property
    def ranking(self) -> pa.Table:
        """The teacher's own ranking, `DEPTH` candidates a pair."""
        return self._mined[1]

    @cached_property
    def judged(self) -> list[Judged]:
        """The teacher's own scores, which cost nothing more, and each judge, on the same pairs.

        The pairs are naive negatives: half of them known positives, if there are as many.
        """
        hidden = self.hidden
        pairs = judge_quality.sample(self.tables[NAIVE], self.chosen.judged_pairs, hidden=hidden)
        teacher = self.settings.teacher_named(self.chosen.teacher, "audit.teacher")
        limit = teacher.passage_max_length
        verdicts = [judge_quality.by_ceiling(pairs, hidden)]
        for judge in self.chosen.judges:
            folder = assets.model_folder(judge)
            files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])

            def build(target: Path, judge: str = judge) -> None:
                model = judges.load(judge, max_length=limit, device=self.settings.device)
                judge_quality.judge(
                    model, hidden.dataset, pairs, hidden, progress=self.progress
                ).save(target)

            folder = stored(
                "judged",
                build,
                pairs=store.fingerprint(pairs, hidden.dataset.fingerprint, hidden.pairs),
                judge=store.fingerprint(*files, judge, limit),
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

    def _each(self, rows: Callable[[AuditedSet], Any]) -> pd.DataFrame:
        """The rows of every set in one table."""
        parts = {name: pd.DataFrame(rows(one)) for name, one in self.sets.items()}
        return pd.concat(parts, names=["dataset"]).reset_index("dataset").reset_index(drop=True)

    def sizes(self) -> pd.DataFrame:
        """How the labels of each set were hidden, and how many of them."""

        def rows(one: AuditedSet) -> list[dict[str, Any]]:
            dataset, pairs, source = one.hidden
            sizes = tables.sizes(dataset)
            row = {"labels": source, "queries": sizes["questions"], "passages": sizes["passages"]}
            row |= {"words per passage": sizes["words a passage"]}
            return [row | {"hidden per query": pairs.num_rows / sizes["questions"]}]

        return self._each(rows)

    def frontier(self) -> pd.DataFrame:
        """`nvret.analysis.audit.frontier` of every set."""
        return self._each(lambda one: audit.frontier(one.tables, one.hidden, one.ranking, NAIVE))

    def reductions(self) -> pd.DataFrame:
        """How much fewer false negatives than naive top-k, as a share of naive's rate."""

        def rows(one: AuditedSet) -> list[dict[str, Any]]:
            counts = {m: audit.false_negatives(t, one.hidden) for m, t in one.tables.items()}
            naive = counts.pop(NAIVE)
            lower = {m: statistics.reduction(count, naive) for m, count in counts.items()}
            return [{"method": m, **interval._asdict()} for m, interval in lower.items()]

        return self._each(rows).rename(columns={"value": "reduction"})

    def beside_paper(self) -> pd.DataFrame:
        """The paper's audit above this one: columns of ``results/paper/false_negatives.csv``.

        ``share`` of naive negatives that are positives; ``reduction`` by a positive-aware method.
        """
        theirs = paper.table("false_negatives")
        audited = self.sets[self.datasets[0]].methods
        wanted = [str(method) for method in audited if isinstance(method, AWARE)]
        ours = self.frontier().rename(columns={"rate": "share"})
        ours = ours[ours["method"].isin(wanted)]
        ours = ours.merge(self.reductions(), on=["dataset", "method"], how="left")
        judge = {name: f"hidden labels, {one.hidden.source}" for name, one in self.sets.items()}
        ours = ours.assign(judge=ours["dataset"].map(judge), source="here")
        return pd.concat([theirs, ours[theirs.columns]], ignore_index=True)

    def by_rank(self) -> pd.DataFrame:
        """The share of known positives at each of the first ranks of the teacher's ranking."""
        table = self._each(lambda one: audit.by_rank(one.ranking, one.hidden))
        return table[table["rank"] <= RANKS].reset_index(drop=True)

    def quality(self) -> pd.DataFrame:
        """What each judge catches on each set, and how many tokens it reads for it."""

        def rows(one: AuditedSet) -> list[dict[str, Any]]:
            share = float(audit.known(one.tables[NAIVE], one.hidden).mean())
            return [judge_quality.quality(judged, share) | {"tokens per pair": judged.tokens}
                    for judged in one.judged]  # fmt: skip

        return self._each(rows)

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
        hidden, table = self.sets[name].hidden, self.sets[name].tables[NAIVE]
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
