"""A study: mine, train and evaluate every arm for every seed; resumable at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd
import pyarrow as pa

from nvret import methods, negatives, sampling
from nvret.analysis import overlap
from nvret.models import batching
from nvret.study import paths, treatments
from nvret.study.arms import Arm
from nvret.study.config import expand
from nvret.study.models import Models
from nvret.study.scores import Results
from nvret.study.tables import differing
from nvret.study.tables import mined as mined_table
from nvret.study.workspace import Workspace
from nvret.utils import machine
from nvret.utils.bars import progress_bar

COMMON = "hardness by one teacher"  # the profile's, whoever mined


class Study(Models):
    """What a notebook compares.

    `Material` says what the arms train on and are tested on, `Models` trains and tests.
    """

    def run(self) -> Results:
        """Train and evaluate every arm; an interrupted run continues where it stopped.

        Seed by seed, so that early results are comparable. Each student has a bar of its own,
        since only its own models take about the same time.
        """
        scores, logs = [], []
        with batching.remember_tokens():
            for student in dict.fromkeys(arm.student for arm in self.arms):
                for arm, seed in self._todo(student):
                    found, log = self._evaluated(arm, seed)
                    scores.append(found.assign(arm=arm.label, seed=seed))
                    logs.append(log.assign(arm=arm.label, seed=seed))
                    machine.free_gpu_memory()
        results = Results.of(
            pd.DataFrame([{"arm": arm.label, **arm.row} for arm in self.arms]).set_index("arm"),
            pd.concat(scores, ignore_index=True),
            pd.concat(logs, ignore_index=True),
            self.workspace.dev.name,
            primary=self.primary,
            corpora=self._corpora(),
            differing=pd.concat(map(differing, self._mined_by_student())),
        )
        results.save(paths.scores_path(self.settings, self.name))
        return results

    def _mined_by_student(self) -> Iterator[Iterator[tuple[str, pa.Table]]]:
        """For each student: its arms with what they mine for the first seed."""
        for student in dict.fromkeys(arm.student for arm in self.arms):
            own = [arm for arm in self.arms if arm.student == student]
            yield ((arm.label, self.negatives(arm, self.settings.seeds[0])) for arm in own)

    def _todo(self, student: str) -> Iterator[tuple[Arm, int]]:
        """A student's arms and seeds under a bar; what is not trained has one seed."""
        seeds = self.settings.seeds_of(student, self.name)
        todo = [
            (arm, seed)
            for seed in seeds
            for arm in self.arms
            if arm.student == student and (arm.trained or seed == seeds[0])
        ]
        bar = progress_bar(
            todo, desc=f"{self.name} {student}", unit="model", show=self.workspace.progress
        )
        for arm, seed in bar:
            bar.set_postfix_str(f"{', '.join([arm.method_name, *arm.changed])}, seed {seed}")
            yield arm, seed

    @property
    def design(self) -> pd.DataFrame:
        """The experiment: a row for each line of the study's grid, with what it runs through."""
        rows, seeds = [], self.settings.seeds_of
        for grid in self.settings.studies[self.name].runs:
            values = grid.model_dump(exclude_unset=True)
            lists = {k: v if isinstance(v, list) else [v] for k, v in values.items()}
            students, own = lists.pop("student"), lists.pop("method")
            rest = (
                f"{key.replace('_', ' ')}: {', '.join(map(str, v))}" for key, v in lists.items()
            )
            each = expand(grid)
            models = sum(len(seeds(one["student"], self.name)) for one in each)
            rows.append((", ".join(students), ", ".join(own), "; ".join(rest), len(each), models))
        names = ["student", "negatives", "and", "arms", "models"]
        return pd.DataFrame(rows, columns=names)

    # What was mined, for the notebooks' tables

    def of_method(self, method: methods.Method, seed: int) -> pa.Table:
        """What a method mines with the profile's teacher and the first student's settings."""
        first = next(arm for arm in self.arms if arm.method is not None)
        teacher, train = self.settings.teacher, self.settings.data.train
        plain = replace(first, teachers=(teacher,), ensemble=None, train=(train,), treatment=None)
        return self.negatives(replace(plain, sampling=sampling.TopK(), method=method), seed)

    def mined(self, seed: int) -> pd.DataFrame:
        """`tables.mined` of every arm that mines and trains on one set.

        Teachers differ in their scale. Where arms have several, there is a column COMMON as well.
        """
        chosen = [arm for arm in self.arms if arm.method is not None and len(arm.train) == 1]
        rows = []
        for arm in chosen:
            table = self.negatives(arm, seed)
            row = mined_table(self.dataset(arm, seed), {arm.label: table}, arm.num_negatives)
            if len({other.teachers for other in chosen}) > 1 and ":" not in arm.train[0]:
                row[COMMON] = self._common_hardness(table, arm.train[0])
            rows.append(row)
        return pd.concat(rows).rename_axis("arm")

    def _common_hardness(self, table: pa.Table, train: str) -> float:
        """Mean score of negatives ÷ that of their positives, by the profile's teacher."""
        if not table.num_rows:
            return float("nan")
        rows = negatives.rows_of(table, self.workspace.train(train))
        scorer = self.workspace.scorer(None, train)
        queries = rows["query"].to_numpy()
        means = [scorer.pair_scores(queries, rows[kind].to_numpy()).mean()
                 for kind in ("negative", "positive")]  # fmt: skip
        return float(means[0] / means[1])

    def treated(self, seed: int) -> pd.DataFrame:
        """`treatments.report` of the arms that mine a training set with hidden labels."""
        parts = []
        for arm in self.arms:
            if arm.method is not None and len(arm.train) == 1 and ":" in arm.train[0]:
                train, table = arm.train[0], {arm.label: self.negatives(arm, seed)}
                way = "kept" if self.workspace.near_duplicates(train) is None else "excluded"
                rows = treatments.report(table, self.workspace.hidden(train).pairs)
                parts.append(rows.assign(train=train, **{"near-duplicates": way}))
        return pd.concat(parts).set_index("arm")

    def by_teacher(self) -> dict[str, dict[str, pa.Table]]:
        """Training set -> teacher -> negatives, of the arms with a single teacher."""
        sets: dict[str, dict[str, pa.Table]] = {}
        for arm in self.arms:
            if len(arm.teachers) == 1 and len(arm.train) == 1:
                tables = sets.setdefault(arm.train[0], {})
                tables.setdefault(arm.teachers[0], self.negatives(arm, self.settings.seeds[0]))
        return sets

    def repeats(self, seed: int) -> pd.DataFrame:
        """How many different passages each ensemble gives a pair, and what repeats weigh."""
        ensembled = [arm for arm in self.arms if arm.ensemble is not None]
        return pd.DataFrame(
            {"arm": arm.label, **overlap.repeats(self.negatives(arm, seed))} for arm in ensembled
        )

    def composition(self) -> pd.DataFrame:
        """Questions and passages of each training set in each mixture."""
        rows = {}
        for arm in self.arms:
            parts = self._parts(arm, self.settings.seeds[0]) if len(arm.train) > 1 else {}
            for name, part in parts.items():
                rows[arm.mixture_temperature, name] = {
                    "mixture temperature": arm.mixture_temperature,
                    "set": name,
                    "questions": part.queries.num_rows,
                    "passages": part.corpus.num_rows,
                }
        return pd.DataFrame(rows.values())


def studies(workspace: Workspace, names: Sequence[str]) -> list[Study]:
    """The studies of these notebooks; a notebook without one is left out."""
    return [Study(workspace, name) for name in names if name in workspace.settings.studies]
