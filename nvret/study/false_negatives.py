"""The audit of a profile: its sets with hidden labels, mined by its methods, read by its judges.

Each part is computed when it is asked for, or found in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa

from nvret import assets, data, methods, mining, negatives, teachers
from nvret.analysis import audit, judge_quality, judges, statistics
from nvret.analysis.audit import Hidden
from nvret.analysis.judge_quality import Judged
from nvret.study import report
from nvret.study.config import Settings
from nvret.study.workspace import Workspace
from nvret.utils import recipes, store

DEPTH = 100  # ranks of the teacher's own ranking that are looked at
WIDTH = 300  # characters of a text that an example shows


class Audit:
    """What ``09_false_negatives`` shows.

    Args:
        settings: of the profile; its section ``audit`` says what is audited.
        progress: show bars.
    """

    naive = str(methods.NaiveTopK())

    def __init__(self, settings: Settings, *, progress: bool = True) -> None:
        self.settings, self.progress = settings, progress
        self.chosen, self.datasets = settings.audit, settings.audit.datasets
        wanted = self.chosen.build_methods()
        reference = methods.NaiveTopK()  # what all are compared with
        self.methods = wanted if reference in wanted else [reference, *wanted]

    @cache  # noqa: B019 (an audit lives as long as the process)
    def hidden(self, name: str) -> Hidden:
        """A set without some of its labels."""
        whole = data.load(name, progress=self.progress)
        return audit.labels(whole, self.chosen.queries, self.chosen.passages)

    @cache  # noqa: B019
    def _scorer(self, name: str) -> teachers.Scorer:
        teacher = Workspace(self.settings).teacher(self.chosen.teacher)
        return teachers.prepare(teacher, self.hidden(name).dataset, progress=self.progress)

    @cache  # noqa: B019
    def _mined(self, name: str) -> Path:
        dataset, scorer = self.hidden(name).dataset, self._scorer(name)
        options = self.settings.mining.model_dump()
        inputs = {
            "dataset": dataset.fingerprint,
            "teacher": scorer.fingerprint,
            "methods": [[type(method).__name__, vars(method)] for method in self.methods],
            "mining": options | {"num_negatives": self.chosen.num_negatives, "depth": DEPTH},
            "recipe": recipes.versions(
                "vectors", "search", "near-duplicates", "mining", "hidden-labels"
            ),
        }  # fmt: skip

        def build(folder: Path) -> None:
            options["exclude"] = mining.exclusions(dataset, options["near_duplicates"])
            sweep = mining.sweep(
                dataset, scorer, self.methods, self.chosen.num_negatives, progress=False, **options
            )
            deep = mining.mine(
                dataset, scorer, methods.NaiveTopK(), DEPTH, progress=False, **options
            )
            for place, table in enumerate([*sweep, deep]):
                negatives.save(table, folder / f"{place}.parquet")

        return store.stage("audit", inputs, build)

    def tables(self, name: str) -> dict[str, pa.Table]:
        """Negatives of a set by method."""
        folder = self._mined(name)
        return {
            str(method): negatives.load(folder / f"{place}.parquet")
            for place, method in enumerate(self.methods)
        }

    def ranking(self, name: str) -> pa.Table:
        """The teacher's own ranking of a set, `DEPTH` candidates a pair."""
        return negatives.load(self._mined(name) / f"{len(self.methods)}.parquet")

    def _each(self, table: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        parts = [table(name).assign(dataset=name) for name in self.datasets]
        joined = pd.concat(parts, ignore_index=True)
        return joined[["dataset", *joined.columns.drop("dataset")]]

    def sizes(self) -> pd.DataFrame:
        """How the labels of each set were hidden, and how many of them."""

        def one(name: str) -> pd.DataFrame:
            dataset, pairs, source = self.hidden(name)
            queries, passages = dataset.queries.num_rows, dataset.corpus.num_rows
            words = sum(len(text.split()) for text in dataset.passages)
            row = {"labels": source, "queries": queries, "passages": passages}
            row |= {"words per passage": words / passages}
            return pd.DataFrame([row | {"hidden per query": pairs.num_rows / queries}])

        return self._each(one)

    def frontier(self) -> pd.DataFrame:
        """`nvret.analysis.audit.frontier` of every set."""
        return self._each(
            lambda name: audit.frontier(
                self.tables(name), self.hidden(name), self.ranking(name), self.naive
            )
        )

    def reductions(self) -> pd.DataFrame:
        """How much fewer false negatives than naive top-k: dataset, method, reduction, low, high.

        The unit is a share of naive's rate, in each set.
        """

        def one(name: str) -> pd.DataFrame:
            counts = {
                method: audit.false_negatives(table, self.hidden(name))
                for method, table in self.tables(name).items()
            }
            rows = [
                (method, *statistics.reduction(table, counts[self.naive]))
                for method, table in counts.items()
                if method != self.naive
            ]
            return pd.DataFrame(rows, columns=["method", "reduction", "low", "high"])

        return self._each(one)

    def beside_paper(self) -> pd.DataFrame:
        """The paper's audit above this one: columns of ``results/paper/false_negatives.csv``.

        ``share`` of naive negatives that are positives; ``reduction`` by a positive-aware method.
        """
        theirs = report.paper_table("false_negatives")
        aware = (methods.NaiveTopK, methods.TopKMarginPos, methods.TopKPercPos)
        wanted = [str(method) for method in self.methods if isinstance(method, aware)]
        keys = ["dataset", "method"]
        ours = self.frontier().rename(columns={"rate": "share"})
        ours = ours.loc[ours["method"].isin(wanted), [*keys, "share"]]
        ours = ours.merge(self.reductions()[[*keys, "reduction"]], on=keys, how="left")
        judge = {name: f"hidden labels, {self.hidden(name).source}" for name in self.datasets}
        ours = ours.assign(judge=ours["dataset"].map(judge), source="here")
        return pd.concat([theirs, ours], ignore_index=True)[theirs.columns]

    def by_rank(self, deepest: int = 30) -> pd.DataFrame:
        """The share of known positives at each rank of the teacher's ranking."""

        def one(name: str) -> pd.DataFrame:
            table = audit.by_rank(self.ranking(name), self.hidden(name))
            return table[table["rank"] <= deepest]

        return self._each(one)

    def sample(self, name: str) -> pa.Table:
        """The naive negatives that the judges read: half of them known positives, if there are."""
        table, number = self.tables(name)[self.naive], self.chosen.judged_pairs
        return judge_quality.sample(table, number, hidden=self.hidden(name))

    def _share(self, name: str) -> float:
        """Of known positives among all naive negatives."""
        return float(audit.known(self.tables(name)[self.naive], self.hidden(name)).mean())

    @cache  # noqa: B019
    def judged(self, name: str) -> list[Judged]:
        """The teacher's own scores, which cost nothing more, and each judge, on the same pairs."""
        pairs, hidden = self.sample(name), self.hidden(name)
        limit = self.settings.teacher_named(self.chosen.teacher, "audit.teacher").passage_max_length
        found = [judge_quality.by_ceiling(pairs, hidden)]
        for judge in self.chosen.judges:
            folder = assets.model_folder(judge)
            files = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
            inputs = {
                "pairs": store.fingerprint(pairs, hidden.dataset.fingerprint, hidden.pairs),
                "judge": store.fingerprint(*sorted(files), judge, limit),
                "recipe": recipes.versions("judges", "hidden-labels"),
            }

            def build(target: Path, judge: str = judge) -> None:
                model = judges.load(judge, max_length=limit, device=self.settings.device)
                judge_quality.judge(
                    model, self.hidden(name).dataset, pairs, hidden, progress=self.progress
                ).save(target)

            found.append(Judged.load(store.stage("judged", inputs, build)))
        return found

    def quality(self) -> pd.DataFrame:
        """What each judge catches on each set, and how many tokens it reads for it."""

        def one(name: str) -> pd.DataFrame:
            judged, share = self.judged(name), self._share(name)
            rows = [judge_quality.quality(j, share) | {"tokens per pair": j.tokens} for j in judged]
            return pd.DataFrame(rows)

        return self._each(one)

    def curves(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Set -> judge -> what it catches at each of its thresholds."""
        return {
            name: {j.judge: judge_quality.curve(j, self._share(name)) for j in self.judged(name)}
            for name in self.datasets
        }

    def seconds(self) -> pd.DataFrame:
        """Seconds for a thousand pairs when they were judged: this machine's, at that moment."""
        found = {name: {j.judge: j.seconds for j in self.judged(name)} for name in self.datasets}
        return pd.DataFrame(found).rename_axis("judge")

    def examples(self, name: str, number: int = 4) -> list[str]:
        """Naive negatives that are hidden positives, as Markdown, those of the best rank first."""
        hidden, table = self.hidden(name), self.tables(name)[self.naive]
        rows = table.to_pandas()[audit.known(table, hidden)].sort_values(
            ["rank", "score"], ascending=[True, False], kind="stable"
        )
        dataset = hidden.dataset
        text = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))
        asked = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
        return [
            f"**{asked[row.query_id]}**\n\n"
            f"- kept positive, {row.positive_score:.2f}: {text[row.positive_id][:WIDTH]}\n"
            f"- negative of rank {row.rank}, {row.score:.2f}: {text[row.negative_id][:WIDTH]}"
            for row in rows.head(number).itertuples()
        ]
